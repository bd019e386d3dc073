"""Throttles, and the places from which users have signed in."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
serves_from = "0001"

# One attempt is taken from each bucket (GCRA; throttle.py says more), in the order given, or from none: then
# `refusing` is the number of the one that refuses, for so many `seconds` yet. `taken` are the numbers of those taken
# from, `last` of those now empty. A key that is NULL is passed over.
#
# One moment judges all. A bucket that is known to refuse does so before anything is locked or written: a flood of
# refused attempts only reads. One that turns out to refuse while others were taken from gives those back; their rows
# are locked, so nobody sees it. Nobody waits for the disk either: after a crash, an attempt may be had again.
#
# enable_seqscan: a plan is kept, also one that was made when the table was nearly empty.
_TAKE = """
CREATE FUNCTION gatepost.take(
    keys bytea[], bursts integer[], everys float8[],
    OUT refusing integer, OUT seconds float8, OUT taken integer[], OUT last integer[]
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    moment CONSTANT timestamptz := clock_timestamp();
    latest timestamptz;
    ahead double precision;
    is_last boolean;
BEGIN
    FOR i IN 1 .. cardinality(keys) LOOP
        SELECT extract(epoch FROM t.due - moment) - everys[i] * (bursts[i] - 1) INTO ahead
        FROM gatepost.throttles t WHERE t.key = keys[i];
        IF ahead > coalesce(seconds, 0) THEN
            refusing := i;
            seconds := ahead;
        END IF;
    END LOOP;
    IF refusing IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR i IN 1 .. cardinality(keys) LOOP
        CONTINUE WHEN keys[i] IS NULL;
        latest := moment + make_interval(secs => everys[i] * (bursts[i] - 1));
        INSERT INTO gatepost.throttles AS t (key, due) VALUES (keys[i], moment + make_interval(secs => everys[i]))
        ON CONFLICT (key) DO UPDATE SET due = greatest(t.due, moment) + make_interval(secs => everys[i])
        WHERE t.due <= latest
        RETURNING t.due > latest INTO is_last;
        IF NOT FOUND THEN
            UPDATE gatepost.throttles t SET due = t.due - make_interval(secs => everys[n])
            FROM unnest(taken) AS n WHERE t.key = keys[n];
            SELECT i, extract(epoch FROM t.due - latest), NULL, NULL INTO refusing, seconds, taken, last
            FROM gatepost.throttles t WHERE t.key = keys[i];
            RETURN;
        END IF;
        taken := taken || i;
        IF is_last THEN
            last := last || i;
        END IF;
    END LOOP;
END
$$
"""


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "throttles",
        sa.Column("key", postgresql.BYTEA(), nullable=False),
        sa.Column("due", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("octet_length(key) = 16", name=op.f("throttles_key_length_check")),
        sa.PrimaryKeyConstraint("key", name=op.f("throttles_pkey")),
        schema="gatepost",
    )
    # Room for updates in place. And rows come and go at the pace of an attack: vacuum when 2 % of them are dead
    # instead of 20 %, and as fast as the disk can.
    op.execute(
        "ALTER TABLE gatepost.throttles SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, "
        "autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0)"
    )
    op.execute(_TAKE)
    op.create_table(
        "known_places",
        sa.Column("user_id", postgresql.UUID(), nullable=False),
        sa.Column("place", postgresql.BYTEA(), nullable=False),
        sa.Column(
            "seen_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("octet_length(place) = 16", name=op.f("known_places_place_length_check")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["gatepost.users.id"], name=op.f("known_places_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "place", name=op.f("known_places_pkey")),
        schema="gatepost",
    )


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP FUNCTION gatepost.take")
    op.drop_table("known_places", schema="gatepost")
    op.drop_table("throttles", schema="gatepost")
