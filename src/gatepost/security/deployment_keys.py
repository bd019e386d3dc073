"""Secret keys that all nodes of a deployment share; the first node that needs one creates it."""

import secrets

from gatepost.postgres.database import Connection, Database, Statement

# The conflicting row is updated to itself: DO NOTHING would return no row, and the snapshot may not contain the row
# that another node inserted.
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
