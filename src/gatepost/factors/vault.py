"""The secrets of second factors under encryption: whoever reads the database alone can make no code."""

import hmac
import secrets
from typing import TYPE_CHECKING, NamedTuple

from gatepost.config.factors import FactorsConfig
from gatepost.errors import MissingSecret
from gatepost.postgres.database import Connection, Database, Statement

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12


class MissingKey(MissingSecret):
    """Secrets of second factors are stored that the configuration cannot open; the message names the key."""


class Sealed(NamedTuple):
    """A secret under AES-256-GCM, after its nonce. ``key``: the id of the key; None for the deployment's own."""

    text: bytes
    key: str | None


class Vault:
    """Seals secrets, and opens them for the user to whom they belong. Both take up to a fraction of a second the
    first time: call them on a thread.

    ``deployment``: the key that is used where the configuration has none. It lies in the same database, so it keeps
    secrets from those only who read the table and not that key, as in a part of a backup.
    """

    def __init__(self, config: FactorsConfig, deployment: bytes) -> None:
        self.current = config.current_key
        self._keys: dict[str | None, bytes] = {
            name: hmac.digest(key.get_secret_value().encode(), b"gatepost factors", "sha256")
            for name, key in config.keys.items()
        }
        self._keys[None] = deployment

    def seal(self, secret: bytes, user_id: str) -> Sealed:
        """Encrypt a secret of this user under the current key."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return Sealed(nonce + _aes(self._keys[self.current]).encrypt(nonce, secret, user_id.encode()), self.current)

    def open(self, sealed: Sealed, user_id: str) -> bytes:
        """The secret. Raises MissingKey; and ValueError for one that was changed, or is another user's."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 (as _aes)

        if sealed.key not in self._keys:
            raise MissingKey(_missing(sealed.key))
        nonce, text = sealed.text[:NONCE_BYTES], sealed.text[NONCE_BYTES:]
        try:
            return bytes(_aes(self._keys[sealed.key]).decrypt(nonce, text, user_id.encode()))
        except InvalidTag:
            raise ValueError(f"a secret of the user {user_id} is not what was sealed") from None


def _aes(key: bytes) -> "AESGCM":
    # Imported when it is needed: 8 MB and 150 ms (measured).
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    return AESGCM(key)


def _missing(key: str | None) -> str:
    return f"secrets of second factors are stored under the key {key!r}: add it to factors.keys"


_UNKNOWN_KEY = Statement("""
    SELECT key FROM gatepost.totp_factors WHERE key IS NOT NULL AND key <> ALL (CAST(:known AS text[])) LIMIT 1
""")


async def _unknown_key(connection: Connection, known: list[str]) -> str | None:
    row = await _UNKNOWN_KEY.first(connection, known=known)
    return row[0] if row else None


async def refuse_missing_key(config: FactorsConfig, database: Database) -> None:
    """Raise MissingKey when stored secrets need a key that we do not have; also DatabaseUnavailable."""
    missing = await database.read(_unknown_key, list(config.keys))
    if missing is not None:
        raise MissingKey(_missing(missing))
