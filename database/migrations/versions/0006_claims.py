"""Processes with a sign of life, and what another process needs to go on with a background answer."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "processes",
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_processes"),
    )
    op.add_column("turns", sa.Column("body", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("turns", sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("stream_batches", sa.Column("pieces", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("stream_batches", "pieces")
    op.drop_column("turns", "attempt")
    op.drop_column("turns", "body")
    op.drop_table("processes")
