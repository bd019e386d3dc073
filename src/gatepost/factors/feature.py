"""Second factors."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from gatepost.errors import NotPermitted
from gatepost.factors import handlers, proving, queries
from gatepost.factors.parts import VAULT
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
    tickets = partial(in_batches, lambda most: database.write(queries.sweep_tickets, most))
    unconfirmed = partial(in_batches, lambda most: database.write(queries.sweep_unconfirmed, most))
    async with parts.sweeping("login_tickets", tickets), parts.sweeping("totp_factors", unconfirmed):
        yield


FEATURE = Feature(
    routes=[*handlers.routes, *proving.routes],
    open=_open,
    events={
        "authn_factor_fail": "a wrong or used code of a second factor",
        "factor_added": "`factor`: `totp`",
        "factor_removed": "`factor`: `totp`",
        "recovery_code_used": "",
        "recovery_codes_created": "",
        "session_confirmed": "",
    },
)
