"""Services in SQL: one function, one statement, one round trip."""

from datetime import datetime
from typing import NamedTuple

from gatepost.postgres.database import Connection, Statement

_FIND = Statement("SELECT name FROM gatepost.services WHERE token_hash = :token_hash")


async def find(connection: Connection, token_hash: bytes) -> str | None:
    """The name of the service with this token hash."""
    row = await _FIND.first(connection, token_hash=token_hash)
    return row[0] if row else None


_ADD = Statement("""
    WITH added AS (
        INSERT INTO gatepost.services (name, token_hash) VALUES (:name, :token_hash)
        ON CONFLICT (name) DO NOTHING RETURNING name
    ), recorded AS (
        INSERT INTO gatepost.events (kind, detail)
        SELECT 'service_added', jsonb_build_object('by', 'operator', 'name', name) FROM added
    )
    SELECT name FROM added
""")


async def add(connection: Connection, name: str, token_hash: bytes) -> bool:
    """Add a service. False if there is one of this name."""
    return await _ADD.first(connection, name=name, token_hash=token_hash) is not None


class Service(NamedTuple):
    """A service as operators see it."""

    name: str
    created_at: datetime


_LIST = Statement("SELECT name, created_at FROM gatepost.services ORDER BY name")


async def every(connection: Connection) -> list[Service]:
    """All services by name."""
    return [Service(*row) for row in await _LIST.all(connection)]


_REVOKE = Statement("""
    WITH revoked AS (
        DELETE FROM gatepost.services WHERE name = :name RETURNING name
    ), recorded AS (
        INSERT INTO gatepost.events (kind, detail)
        SELECT 'service_revoked', jsonb_build_object('by', 'operator', 'name', name) FROM revoked
    )
    SELECT name FROM revoked
""")


async def revoke(connection: Connection, name: str) -> bool:
    """Remove a service; its token is refused from now on. False if there is none of this name."""
    return await _REVOKE.first(connection, name=name) is not None
