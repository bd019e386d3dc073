"""The SQL of sessions inside Postgres."""

from gatepost.postgres.database import Connection, Statement

_TELL_IDLE_TIMEOUT = Statement("""
    INSERT INTO gatepost.settings (name, value) VALUES ('idle_timeout', :seconds)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE settings.value <> excluded.value
    RETURNING 1
""")


async def tell_idle_timeout(connection: Connection, seconds: int) -> None:
    """Let `gatepost.sign_in_as` know after how many seconds without a request a session ends."""
    await _TELL_IDLE_TIMEOUT.all(connection, seconds=seconds)


# A row of a transaction that has not ended is not seen yet; a session that another node touches is left to it.
_TOUCH_USED = Statement("""
    WITH gone AS (
        DELETE FROM gatepost.session_uses WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM gatepost.session_uses LIMIT :most FOR UPDATE SKIP LOCKED))
        RETURNING handle, at
    ), used AS (
        SELECT handle, max(at) AS at FROM gone GROUP BY handle
    ), touched AS (
        UPDATE gatepost.sessions s SET last_seen_at = used.at FROM used WHERE s.handle = used.handle
            AND s.last_seen_at < used.at AND s.token_hash IN (
                SELECT token_hash FROM gatepost.sessions JOIN used USING (handle)
                ORDER BY token_hash FOR NO KEY UPDATE OF sessions SKIP LOCKED)
    )
    SELECT count(*) FROM gone
""")


async def touch_used(connection: Connection, most: int) -> int:
    """Touch the sessions of up to ``most`` uses inside the database; how many uses there were."""
    rows = await _TOUCH_USED.all(connection, most=most)
    return int(rows[0][0])
