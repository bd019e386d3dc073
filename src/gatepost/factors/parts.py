"""What the handlers of factors share: the vault, what asks browsers for passkeys, bounds and rules of names."""

from aiohttp import web

from gatepost.errors import FieldError, InvalidBody, NotFound
from gatepost.factors.passkeys import RelyingParty
from gatepost.factors.vault import Vault
from gatepost.http.app import THROTTLE
from gatepost.security.throttle import Bucket
from gatepost.sessions.session import Session

VAULT = web.AppKey("vault", Vault)


class Passkeys:
    """``party`` is None where there are no passkeys."""

    def __init__(self, party: RelyingParty | None) -> None:
        self.party = party


PASSKEYS = web.AppKey("passkeys", Passkeys)


def relying_party(request: web.Request) -> RelyingParty:
    """That of this server. Raises NotFound where there are no passkeys."""
    party = request.app[PASSKEYS].party
    if party is None:
        raise NotFound
    return party


def activity(request: web.Request, session: Session) -> Bucket:
    """What bounds how often a user changes the own factors."""
    return request.app[THROTTLE].for_activity(session.canonical)


def refuse_unprintable(name: str) -> None:
    """Raise InvalidBody for a name that cannot be shown."""
    if not name.isprintable():
        raise InvalidBody([FieldError("name", "invalid_name", "must be printable")])
