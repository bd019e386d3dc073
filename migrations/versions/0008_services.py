"""Services that check sessions: each has a token of its own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import BYTEA, TIMESTAMP

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
serves_from = "0001"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "services",
        sa.Column("name", sa.Text(collation="C"), nullable=False),
        sa.Column("token_hash", BYTEA, nullable=False),
        sa.Column(
            "created_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")
        ),
        sa.CheckConstraint("name ~ '^[a-z0-9][a-z0-9._-]{0,63}$'", name=op.f("services_name_form_check")),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("services_token_hash_length_check")),
        sa.PrimaryKeyConstraint("name", name=op.f("services_pkey")),
        sa.UniqueConstraint("token_hash", name=op.f("services_token_hash_key")),
        schema="gatepost",
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("services", schema="gatepost")
