"""Codes of authenticator apps: TOTP (RFC 6238) with SHA-1, six digits and 30 seconds, which all apps know."""

import base64
import hmac
import io
import re
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import pyotp

from gatepost.factors.vault import Sealed, Vault

SECONDS = 30
# RFC 4226 §4, R6: 160 bits are recommended.
SECRET_BYTES = 20
# Steps before and after the current one whose code counts too (RFC 6238 §5.2): clocks drift, and typing takes time.
DRIFT = 1

_CODE = re.compile(r"[0-9]{6}")
# Characters of a name in the app: with more, the QR code becomes too fine for a camera.
_LABEL = 64


class Factor(NamedTuple):
    """A TOTP factor. ``last_step``: of the code that was accepted last."""

    id: str
    sealed: Sealed
    last_step: int


class Match(NamedTuple):
    """The factor that a code fits, and its step: the number of its 30 seconds."""

    factor: Factor
    step: int


def new_secret() -> bytes:
    """A secret for a new factor."""
    return secrets.token_bytes(SECRET_BYTES)


def written(secret: bytes) -> str:
    """A secret as it is typed into an app: base32."""
    return base64.b32encode(secret).decode()


def match(code: str, factors: Sequence[Factor], user_id: str, vault: Vault, now: float) -> Match | None:
    """The factor among a user's that this code fits ``now``, in seconds since 1970. Run it on a thread.

    Spaces in the code are passed over: apps show one in the middle. Raises MissingKey.
    """
    digits = re.sub(r"\s", "", code[:16])
    if not _CODE.fullmatch(digits):
        return None
    found = None
    for factor in factors:
        totp = pyotp.TOTP(written(vault.open(factor.sealed, user_id)))
        current = int(now) // SECONDS
        # All are compared, so that the time does not tell which one it was.
        for step in range(max(0, current - DRIFT), current + DRIFT + 1):
            if hmac.compare_digest(totp.generate_otp(step), digits):
                found = Match(factor, step)
    return found


def uri(secret: bytes, username: str, issuer: str) -> str:
    """What the QR code says to an app (Key URI Format)."""
    return pyotp.TOTP(written(secret)).provisioning_uri(name=username.replace(":", "_")[:_LABEL], issuer_name=issuer)


def qr_code(text: str) -> str:
    """A QR code as an SVG document. Takes some milliseconds: run it on a thread."""
    import segno  # noqa: PLC0415 (0.5 MB)

    svg = io.BytesIO()
    segno.make(text, error="m", micro=False).save(svg, kind="svg", scale=4, xmldecl=False, light="#fff")
    return svg.getvalue().decode().strip()
