"""Passkeys (WebAuthn Level 3): what a browser is asked, and whether its answer holds.

A challenge is signed by us and not stored: asking for one costs nothing but its computation. It says what it is for
and until when, and counts once, which the statement that acts on the answer judges.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import struct
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from gatepost.config import Config

# Seconds that a challenge counts; the browser's own dialogue ends before.
LIFETIME = 300
_RANDOM_BYTES = 16
_MAC_BYTES = 16
_CHALLENGE = struct.Struct(f">{_RANDOM_BYTES}sQ{_MAC_BYTES}s")

SIGN_IN = "sign in"

_USUAL_EXPONENT, _LONGEST_MODULUS = 65537, 4096


class Refused(Exception):
    """The browser's answer does not hold; ``reason`` is for the record."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def methods(*, synced: bool) -> list[str]:
    """How a passkey proves who somebody is (RFC 8176). The device has asked for a finger or a PIN: two factors."""
    return sorted(["mfa", "swk" if synced else "hwk", "user"])


class NewPasskey(NamedTuple):
    """A passkey that was made. ``synced``: whether it may be on several devices."""

    credential_id: bytes
    public_key: bytes
    sign_count: int
    synced: bool
    backed_up: bool


class Stored(NamedTuple):
    """A passkey of a user, as it is stored."""

    id: str
    user_id: str
    public_key: bytes
    synced: bool


class Signed(NamedTuple):
    """A passkey that has signed ``challenge``, of which this is the hash. ``methods``: as RFC 8176 has them."""

    passkey: Stored
    counter: int
    challenge: bytes

    @property
    def methods(self) -> list[str]:
        """How its user has proved who it is (RFC 8176)."""
        return methods(synced=self.passkey.synced)


class RelyingParty:
    """Asks browsers for passkeys of ``rp_id``, a domain, on pages of ``origins``. ``key``: 32 bytes that all nodes
    share.

    What verifies takes up to a fraction of a second the first time (13 MB are imported): call it on a thread.
    """

    def __init__(self, rp_id: str, name: str, origins: Sequence[str], key: bytes) -> None:
        self._rp_id = rp_id
        self._name = name
        self._origins = list(origins)
        self._key = key

    @classmethod
    def of(cls, config: Config, key: bytes) -> "RelyingParty | None":
        """As configured; None where there are no passkeys."""
        origins = config.passkey_origins
        rp_id = config.factors.relying_party or (urlsplit(origins[0]).hostname if origins else None)
        return cls(rp_id, config.factors.issuer, origins, key) if rp_id and origins else None

    def creation_options(self, user_id: str, username: str, existing: Sequence[bytes]) -> dict[str, Any]:
        """What `navigator.credentials.create` is given, as JSON. ``existing``: credentials that the user has."""
        return {
            "rp": {"id": self._rp_id, "name": self._name},
            "user": {"id": _encoded(UUID(user_id).bytes), "name": username, "displayName": username},
            "challenge": self._challenge(user_id),
            # EdDSA, ES256, RS256: what devices have.
            "pubKeyCredParams": [{"type": "public-key", "alg": algorithm} for algorithm in (-8, -7, -257)],
            "timeout": LIFETIME * 1000,
            "excludeCredentials": [{"type": "public-key", "id": _encoded(each)} for each in existing],
            "authenticatorSelection": {
                "residentKey": "required",
                "requireResidentKey": True,
                "userVerification": "required",
            },
            "attestation": "none",
        }

    def request_options(self) -> dict[str, Any]:
        """What `navigator.credentials.get` is given, as JSON: any passkey that the user chooses."""
        return {
            "challenge": self._challenge(SIGN_IN),
            "timeout": LIFETIME * 1000,
            "rpId": self._rp_id,
            "allowCredentials": [],
            "userVerification": "required",
        }

    def made(self, credential: dict[str, Any], user_id: str) -> tuple[NewPasskey, bytes]:
        """The passkey that the browser has made for this user, and the hash of the challenge. Raises Refused."""
        from webauthn import verify_registration_response  # noqa: PLC0415 (13 MB)
        from webauthn.helpers.structs import CredentialDeviceType  # noqa: PLC0415

        challenge = self._opened(credential, user_id)
        try:
            _refuse_certificates(credential)
            verified = verify_registration_response(
                credential=credential,
                expected_challenge=challenge,
                expected_rp_id=self._rp_id,
                expected_origin=self._origins,
                require_user_verification=True,
            )
            _refuse_unusual_key(verified.credential_public_key)
        except Exception:  # noqa: BLE001 (whatever is in it, the library may stumble over it)
            raise Refused("invalid") from None
        synced = verified.credential_device_type is CredentialDeviceType.MULTI_DEVICE
        made = NewPasskey(
            verified.credential_id,
            verified.credential_public_key,
            verified.sign_count,
            synced,
            verified.credential_backed_up,
        )
        return made, hashlib.sha256(challenge).digest()

    def signed(self, credential: dict[str, Any], passkey: Stored) -> Signed:
        """What this passkey has signed. Whether its counter has risen, the statement judges. Raises Refused."""
        from webauthn import verify_authentication_response  # noqa: PLC0415 (13 MB)

        challenge = self._opened(credential, SIGN_IN)
        try:
            verified = verify_authentication_response(
                credential=credential,
                expected_challenge=challenge,
                expected_rp_id=self._rp_id,
                expected_origin=self._origins,
                credential_public_key=passkey.public_key,
                credential_current_sign_count=0,
                require_user_verification=True,
            )
        except Exception:  # noqa: BLE001
            raise Refused("invalid") from None
        handle = credential["response"].get("userHandle")
        if handle is not None and _decoded(handle) != UUID(passkey.user_id).bytes:
            raise Refused("invalid")
        return Signed(passkey, verified.new_sign_count, hashlib.sha256(challenge).digest())

    def _challenge(self, purpose: str) -> str:
        content = secrets.token_bytes(_RANDOM_BYTES), int(time.time()) + LIFETIME
        return _encoded(_CHALLENGE.pack(*content, self._mac(*content, purpose)))

    def _mac(self, random: bytes, until: int, purpose: str) -> bytes:
        return hmac.digest(self._key, random + until.to_bytes(8, "big") + purpose.encode(), "sha256")[:_MAC_BYTES]

    def _opened(self, credential: dict[str, Any], purpose: str) -> bytes:
        """The challenge that was signed. Raises Refused for one that is not ours, of another purpose, or too old."""
        data = _client_data(credential)
        try:
            challenge = _decoded(data["challenge"])
            random, until, mac = _CHALLENGE.unpack(challenge)
        except (KeyError, TypeError, ValueError, struct.error):
            raise Refused("challenge") from None
        if not hmac.compare_digest(mac, self._mac(random, until, purpose)) or until < time.time():
            raise Refused("challenge")
        if data.get("origin") not in self._origins:
            raise Refused("origin")
        return challenge


def credential_id(credential: dict[str, Any]) -> bytes:
    """Which passkey a browser's answer says it is. Raises Refused."""
    try:
        return _decoded(credential["rawId"])
    except (KeyError, TypeError, ValueError):
        raise Refused("invalid") from None


def _refuse_certificates(credential: dict[str, Any]) -> None:
    """Raise ValueError for an attestation with certificates. We ask for none, and a browser leaves them out then
    (WebAuthn Level 3, 5.1.3). With them a client could have us check signatures with any key.
    """
    from webauthn.helpers import parse_attestation_object  # noqa: PLC0415

    if parse_attestation_object(_decoded(credential["response"]["attestationObject"])).att_stmt.x5c:
        raise ValueError


def _refuse_unusual_key(public_key: bytes) -> None:
    """Raise ValueError for an RSA key that no device makes. The check of a signature takes 10 ms with an exponent of
    3,072 bits (measured), in which the interpreter does nothing else, and 0.1 ms with 65537.
    """
    from webauthn.helpers import decode_credential_public_key  # noqa: PLC0415
    from webauthn.helpers.decode_credential_public_key import DecodedRSAPublicKey  # noqa: PLC0415

    key = decode_credential_public_key(public_key)
    if isinstance(key, DecodedRSAPublicKey):
        usual = int.from_bytes(key.e, "big") == _USUAL_EXPONENT
        if not usual or int.from_bytes(key.n, "big").bit_length() > _LONGEST_MODULUS:
            raise ValueError


def _client_data(credential: dict[str, Any]) -> dict[str, Any]:
    try:
        data = json.loads(_decoded(credential["response"]["clientDataJSON"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Refused("invalid") from None
    if not isinstance(data, dict):
        raise Refused("invalid")
    return data


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True)
    except binascii.Error as error:
        raise ValueError from error
