"""`/account/factors`: the second factors of whoever is signed in."""

import asyncio

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from gatepost.errors import (
    ConfirmationRequired,
    ForeignOrigin,
    InvalidCode,
    LastFactor,
    NoSecondFactor,
    NotFound,
    TooManyAttempts,
    TooManyFactors,
)
from gatepost.factors import queries, recovery_codes, totp
from gatepost.factors.parts import VAULT, activity, refuse_unprintable
from gatepost.factors.queries import FactorDocument, FactorsAnswer
from gatepost.http.app import CONFIG, DATABASE, REFUNDS, json_response
from gatepost.http.body import path_id, read_body
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.mail.mailer import MAILER
from gatepost.security.throttle import take
from gatepost.sessions.confirmation import origin
from gatepost.sessions.guard import acting_confirmed, guarded, guarded_also_without_factor
from gatepost.sessions.session import Done, Session


@operation(FactorsAnswer)
@guarded_also_without_factor
async def show(request: web.Request, session: Session) -> web.Response:
    """My second factors."""
    found = await request.app[DATABASE].read(queries.factors_of, session.user_id)
    return json_response(found.document())


class NewFactor(BaseModel):
    """An authenticator app to add. ``name``: for its owner, to tell it from others."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field("Authenticator app", min_length=1, max_length=64)


class NewFactorAnswer(TypedDict):
    """A factor that waits for its first code. Its secret is told only once: as text, as the URI that apps know, and
    as a QR code of that (an SVG document).
    """

    factor: FactorDocument
    secret: str
    uri: str
    qr: str


@operation(
    NewFactorAnswer,
    status=201,
    body=NewFactor,
    problems=(ConfirmationRequired, TooManyFactors, TooManyAttempts, ForeignOrigin),
)
@guarded_also_without_factor
async def add(request: web.Request, session: Session) -> web.Response:
    """Add an authenticator app (TOTP, RFC 6238); it counts once it is confirmed, within an hour."""
    asked = await read_body(request, NewFactor)
    refuse_unprintable(asked.name)
    config, vault, secret = request.app[CONFIG].factors, request.app[VAULT], totp.new_secret()
    async with request.app[REFUNDS].attempt(take, [activity(request, session)]):
        sealed = await asyncio.to_thread(vault.seal, secret, session.user_id)
        async with acting_confirmed(request, session) as connection:
            factor = await queries.add(connection, session.user_id, asked.name, sealed)
    uri = totp.uri(secret, session.username, config.issuer)
    qr = await asyncio.to_thread(totp.qr_code, uri)
    answer = NewFactorAnswer(factor=factor, secret=totp.written(secret), uri=uri, qr=qr)
    return json_response(answer, status=201)


class FirstCode(BaseModel):
    """A code that the new app shows."""

    model_config = ConfigDict(strict=True, extra="forbid")

    code: str = Field(repr=False)


class ConfirmedAnswer(TypedDict):
    """A factor that counts. ``recovery_codes`` come with the first one, and are told only once."""

    factor: FactorDocument
    recovery_codes: list[str]


@operation(
    ConfirmedAnswer,
    body=FirstCode,
    problems=(ConfirmationRequired, InvalidCode, NotFound, TooManyAttempts, ForeignOrigin),
    event="factor_added",
)
@guarded_also_without_factor
async def confirm(request: web.Request, session: Session) -> web.Response:
    """Prove with a code that the app has the secret; from now on a login takes a code of it."""
    asked, factor_id = await read_body(request, FirstCode), path_id(request, "id")
    codes, mailer = recovery_codes.new(), request.app[MAILER]
    async with request.app[REFUNDS].attempt(take, [activity(request, session)]):
        waiting = await request.app[DATABASE].read(queries.unconfirmed, session.user_id, factor_id)
        if waiting is None:
            raise NotFound
        match = await asyncio.to_thread(
            totp.match, asked.code, waiting.factors, session.user_id, request.app[VAULT], waiting.now
        )
        if match is None:
            raise InvalidCode
        async with acting_confirmed(request, session) as connection:
            factor, are_new = await queries.confirm(
                connection,
                session.user_id,
                origin(Client.of(request), session),
                match=match,
                codes=codes,
                language=mailer.notices(request),
            )
    mailer.wake()
    return json_response(ConfirmedAnswer(factor=factor, recovery_codes=codes.written if are_new else []))


@operation(
    Done,
    problems=(ConfirmationRequired, NotFound, LastFactor, TooManyAttempts, ForeignOrigin),
    event="factor_removed",
)
@guarded
async def remove(request: web.Request, session: Session) -> web.Response:
    """Remove a second factor; with the last one go the recovery codes."""
    mailer = request.app[MAILER]
    async with (
        request.app[REFUNDS].attempt(take, [activity(request, session)]),
        acting_confirmed(request, session) as connection,
    ):
        await queries.remove(
            connection,
            session.user_id,
            path_id(request, "id"),
            origin(Client.of(request), session),
            two_factors_for=request.app[CONFIG].factors.required_for,
            language=mailer.notices(request),
        )
    mailer.wake()
    return json_response(Done(status="success"))


class CodesAnswer(TypedDict):
    """New recovery codes. They are told only once; each is worth one login."""

    recovery_codes: list[str]


@operation(
    CodesAnswer,
    status=201,
    problems=(ConfirmationRequired, NoSecondFactor, TooManyAttempts, ForeignOrigin),
    event="recovery_codes_created",
)
@guarded
async def replace_codes(request: web.Request, session: Session) -> web.Response:
    """Make new recovery codes; earlier ones no longer count."""
    codes, mailer = recovery_codes.new(), request.app[MAILER]
    async with (
        request.app[REFUNDS].attempt(take, [activity(request, session)]),
        acting_confirmed(request, session) as connection,
    ):
        whence = origin(Client.of(request), session)
        await queries.replace_codes(connection, session.user_id, whence, codes, mailer.notices(request))
    mailer.wake()
    return json_response(CodesAnswer(recovery_codes=codes.written), status=201)


routes = [
    web.get("/account/factors", show),
    web.post("/account/factors", add),
    web.post("/account/factors/recovery-codes", replace_codes),
    web.post("/account/factors/{id}/confirm", confirm),
    web.delete("/account/factors/{id}", remove),
]
