"""Counts of events and the highest values of gauges, by minute and by hour: the overview shows a month of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None
serves_from = "0011"


def upgrade() -> None:
    """Make the tables; the events of the last month are counted in the background."""
    op.create_table(
        "event_counts",
        sa.Column("span", sa.Text, primary_key=True, nullable=False),
        sa.Column("at", TIMESTAMP(timezone=True), primary_key=True, nullable=False),
        sa.Column("kind", sa.Text, primary_key=True, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.CheckConstraint("span IN ('minute', 'hour')", name="span_known"),
        schema="gatepost",
    )
    op.create_table(
        "event_counts_until",
        sa.Column("singleton", sa.Boolean, primary_key=True, nullable=False, server_default=sa.text("true")),
        sa.Column("at", TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("singleton", name="only_one"),
        schema="gatepost",
    )
    op.create_table(
        "gauge_peaks",
        sa.Column("span", sa.Text, primary_key=True, nullable=False),
        sa.Column("at", TIMESTAMP(timezone=True), primary_key=True, nullable=False),
        sa.Column("name", sa.Text, primary_key=True, nullable=False),
        sa.Column("peak", sa.BigInteger, nullable=False),
        sa.CheckConstraint("span IN ('minute', 'hour')", name="span_known"),
        schema="gatepost",
    )
    op.execute("""
        INSERT INTO gatepost.event_counts_until (at)
        SELECT date_trunc('minute', greatest(
            coalesce((SELECT min(at) FROM gatepost.events), clock_timestamp()),
            clock_timestamp() - interval '31 days'), 'UTC')
    """)


def downgrade() -> None:
    """Drop them."""
    op.drop_table("gauge_peaks", schema="gatepost")
    op.drop_table("event_counts_until", schema="gatepost")
    op.drop_table("event_counts", schema="gatepost")
