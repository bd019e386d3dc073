"""What operators ask of the database."""

from gatepost.postgres.database import Connection, Statement

# Postgres' own running estimate: right to within a second or so, at the same cost for any number of rows.
_ROWS = Statement("""
    SELECT c.relname, pg_stat_get_live_tuples(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'gatepost' AND c.relname = ANY (CAST(:tables AS text[]))
""")


async def rows(connection: Connection, tables: list[str]) -> dict[str, int]:
    """About how many rows these tables have."""
    return dict(await _ROWS.all(connection, tables=tables))
