"""Second factors."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from gatepost.errors import NotPermitted
from gatepost.factors import handlers, passkey_handlers, passkey_queries, proving, queries
from gatepost.factors.parts import PASSKEYS, VAULT, Passkeys
from gatepost.factors.passkeys import LIFETIME, RelyingParty
from gatepost.factors.vault import Vault
from gatepost.http.feature import Feature, Parts
from gatepost.postgres.batches import in_batches
from gatepost.security.deployment_keys import deployment_key
from gatepost.telemetry.logs import log


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    config, database = parts.config.factors, parts.database
    await database.read(queries.permitted)
    try:
        await database.write(queries.tell_roles, config.required_for)
    except NotPermitted as problem:  # a role made for an earlier release, to which sign_in_as does not work either
        log.warning("gatepost.sign_in_as does not know which roles demand two factors", reason=str(problem))
    parts.share(VAULT, Vault(config, await deployment_key(database, "factors")))
    party = RelyingParty.of(parts.config, await deployment_key(database, "passkeys"))
    parts.share(PASSKEYS, Passkeys(party))
    tickets = partial(in_batches, lambda most: database.write(queries.sweep_tickets, most))
    unconfirmed = partial(in_batches, lambda most: database.write(queries.sweep_unconfirmed, most))
    # Kept for twice as long as they count: nodes' clocks differ.
    old = partial(passkey_queries.sweep_challenges, lifetime=2 * LIFETIME)
    challenges = partial(in_batches, lambda most: database.write(old, most))
    async with (
        parts.sweeping("login_tickets", tickets),
        parts.sweeping("totp_factors", unconfirmed),
        parts.sweeping("used_challenges", challenges),
    ):
        yield


FEATURE = Feature(
    routes=[*handlers.routes, *passkey_handlers.routes, *proving.routes],
    open=_open,
    events={
        "authn_factor_fail": "a wrong or used code; of a `factor` `passkey`, the `reason`: `origin` (the page of "
        "somebody else), `challenge`, `unknown` or `invalid`",
        "factor_added": "`factor`: `totp` or `passkey`",
        "factor_removed": "`factor`: `totp` or `passkey`",
        "passkey_counter_fell": "`passkey` (its name) has signed less often than before: there may be a copy",
        "recovery_code_used": "",
        "recovery_codes_created": "",
        "session_confirmed": "",
    },
)
