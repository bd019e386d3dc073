"""Where handlers find the vault, and what asks browsers for passkeys."""

from aiohttp import web

from gatepost.errors import NotFound
from gatepost.factors.passkeys import RelyingParty
from gatepost.factors.vault import Vault

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
