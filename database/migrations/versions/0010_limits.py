"""The states of limits, which processes share.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "limit_states",
        sa.Column("subject", sa.String(512), nullable=False),
        sa.Column("state", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("subject", name="pk_limit_states"),
    )


def downgrade() -> None:
    op.drop_table("limit_states")
