"""Usage by hour, key and model.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COUNTS = ("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


def upgrade() -> None:
    op.create_table(
        "usage_hours",
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("key_id", sa.String(128), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        *(sa.Column(count, sa.BigInteger(), nullable=False) for count in COUNTS),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "owner", "key_id", "model", "kind", name="pk_usage_hours"),
    )
    op.create_index("ix_usage_hours_key_id_hour", "usage_hours", ["key_id", "hour"])
    op.create_table(
        "usage_writers",
        sa.Column("writer", sa.String(255), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("writer", name="pk_usage_writers"),
    )


def downgrade() -> None:
    op.drop_table("usage_writers")
    op.drop_table("usage_hours")
