"""Cursors for pagination, as opaque text. A cursor is not signed: it holds only the name or the number that the next
page begins after, which a caller who may list could ask for anyway. It reaches SQL as a parameter only.
"""

import base64
import binascii
import struct
from datetime import UTC, datetime, timedelta

from gatepost.errors import FieldError, InvalidBody

# The first byte names the list and the encoding of the rest. A new list or a new encoding gets a new byte.
_AFTER_NAME = b"\x01"
_BEFORE_EVENT = b"\x02"
_EVENT = ">qq"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)  # Postgres' own


def after_name(canonical: str) -> str:
    """Go on after the user of this canonical name."""
    return _encode(_AFTER_NAME + canonical.encode())


def before_event(at: datetime, number: int) -> str:
    """Go on before the event of this time and number."""
    return _encode(_BEFORE_EVENT + struct.pack(_EVENT, (at - _EPOCH) // _TICK, number))


def name(cursor: str | None) -> str:
    """The canonical name after which a page begins; without a cursor, one that is before all. Raises InvalidBody."""
    if cursor is None:
        return ""
    try:
        text = _decode(_AFTER_NAME, cursor).decode()
    except UnicodeDecodeError:
        raise _refusal() from None
    if "\0" in text:
        raise _refusal()
    return text


def event(cursor: str | None) -> tuple[datetime, int] | None:
    """Time and number of the event before which a page begins, if there is one. Raises InvalidBody."""
    if cursor is None:
        return None
    try:
        ticks, number = struct.unpack(_EVENT, _decode(_BEFORE_EVENT, cursor))
        return _EPOCH + ticks * _TICK, number
    except (struct.error, OverflowError):
        raise _refusal() from None


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(kind: bytes, cursor: str) -> bytes:
    try:
        content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _refusal() from None
    # b64decode ignores unused trailing bits; a cursor has one form only.
    if not content.startswith(kind) or _encode(content) != cursor:
        raise _refusal()
    return content.removeprefix(kind)


def _refusal() -> InvalidBody:
    return InvalidBody([FieldError("cursor", "invalid_cursor", "is none that this list has given")])
