"""What operators ask of the database."""

from gatepost.db import Connection, Statement

_ASK = Statement("SELECT 1 FROM gatepost.deployment_keys LIMIT 1")


async def ask(connection: Connection) -> None:
    """Prove that the database answers and holds our schema."""
    await _ASK.all(connection)
