"""The records of bulk loads: which chunks of which load are there.

Revision: 0002
Follows: 0001
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

# "schema": runs wherever the schema must change. "data": changes rows, once, and they are replicated.
changes = "schema"


def upgrade() -> None:
    """Go to this revision."""
    op.create_table(
        "bulk_load_chunk",
        sa.Column("load", sa.Text(), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(32), nullable=True),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("loaded_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("load", "chunk", name="pk_bulk_load_chunk"),
    )


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_table("bulk_load_chunk")
