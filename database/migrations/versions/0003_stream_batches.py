"""The events of streams that go on without a reader, and items by their owner and id."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_items_owner_id", "items", ["owner", "id"])
    op.create_table(
        "stream_batches",
        sa.Column("turn_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("turn_id", "number", name="pk_stream_batches"),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name="fk_stream_batches_turn_id", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("stream_batches")
    op.drop_index("ix_items_owner_id", "items")
