"""Secrets that all nodes of a deployment share, made by the first that asks."""

import secrets

from gatepost.postgres.database import Connection, Database, Statement

# ON CONFLICT DO NOTHING returns no row, and the snapshot may not hold the row that won: so it is written over itself.
_KEY = Statement("""
    INSERT INTO gatepost.deployment_keys (name, key) VALUES (:name, :key)
    ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING key
""")


async def _key(connection: Connection, name: str, proposal: bytes) -> bytes:
    row = await _KEY.first(connection, name=name, key=proposal)
    assert row is not None
    return bytes(row[0])


async def deployment_key(database: Database, name: str) -> bytes:
    """The 32 secret bytes of this name. Raises DatabaseUnavailable."""
    return await database.write(_key, name, secrets.token_bytes(32))
