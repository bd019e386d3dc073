"""`/account/passkeys`: the passkeys of whoever is signed in."""

import asyncio
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from gatepost.errors import (
    ConfirmationRequired,
    ForeignOrigin,
    InvalidPasskey,
    LastFactor,
    NotFound,
    PasskeyTaken,
    TooManyAttempts,
    TooManyPasskeys,
)
from gatepost.factors import passkey_queries, recovery_codes
from gatepost.factors.parts import activity, refuse_unprintable, relying_party
from gatepost.factors.passkey_queries import PasskeyDocument
from gatepost.factors.passkeys import Refused, methods
from gatepost.http.app import CONFIG, DATABASE, REFUNDS, json_response
from gatepost.http.body import path_id, read_body
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.mail.mailer import MAILER
from gatepost.security.throttle import take
from gatepost.sessions.confirmation import origin
from gatepost.sessions.guard import acting, acting_confirmed, guarded, guarded_also_without_factor
from gatepost.sessions.session import Done, Session


class PasskeysAnswer(TypedDict):
    """One's own passkeys, the oldest first."""

    passkeys: list[PasskeyDocument]


@operation(PasskeysAnswer)
@guarded_also_without_factor
async def list_passkeys(request: web.Request, session: Session) -> web.Response:
    """My passkeys."""
    passkeys = await request.app[DATABASE].read(passkey_queries.passkeys_of, session.user_id)
    return json_response(PasskeysAnswer(passkeys=passkeys))


class CreationOptions(TypedDict):
    """What `navigator.credentials.create` is given: PublicKeyCredentialCreationOptionsJSON of WebAuthn."""

    publicKey: dict[str, Any]


@operation(CreationOptions, problems=(NotFound, ForeignOrigin))
@guarded_also_without_factor
async def creation_options(request: web.Request, session: Session) -> web.Response:
    """Begin to make a passkey: what the browser is asked; it counts for five minutes."""
    party = relying_party(request)
    existing = await request.app[DATABASE].read(passkey_queries.credentials_of, session.user_id)
    options = party.creation_options(session.user_id, session.username, existing)
    return json_response(CreationOptions(publicKey=options))


class NewPasskey(BaseModel):
    """What the browser has made: RegistrationResponseJSON of WebAuthn. ``name``: for its owner."""

    model_config = ConfigDict(strict=True, extra="forbid")

    credential: dict[str, Any] = Field(repr=False)
    name: str = Field("Passkey", min_length=1, max_length=64)


class PasskeyAdded(TypedDict):
    """A passkey. ``recovery_codes`` come with the first second factor, and are told only once."""

    passkey: PasskeyDocument
    recovery_codes: list[str]


@operation(
    PasskeyAdded,
    status=201,
    body=NewPasskey,
    problems=(
        ConfirmationRequired,
        InvalidPasskey,
        PasskeyTaken,
        TooManyPasskeys,
        NotFound,
        TooManyAttempts,
        ForeignOrigin,
    ),
    event="factor_added",
)
@guarded_also_without_factor
async def add_passkey(request: web.Request, session: Session) -> web.Response:
    """Add the passkey that the browser has made. From now on it signs in, and a password alone no longer does."""
    party = relying_party(request)
    asked, mailer, codes = await read_body(request, NewPasskey), request.app[MAILER], recovery_codes.new()
    refuse_unprintable(asked.name)
    async with request.app[REFUNDS].attempt(take, [activity(request, session)]):
        try:
            made, challenge = await asyncio.to_thread(party.made, asked.credential, session.user_id)
        except Refused:
            raise InvalidPasskey from None
        async with acting_confirmed(request, session) as connection:
            passkey, are_new = await passkey_queries.add(
                connection,
                session.user_id,
                origin(Client.of(request), session),
                made=made,
                challenge=challenge,
                name=asked.name,
                codes=codes,
                how=methods(synced=made.synced),
                language=mailer.notices(request),
            )
    mailer.wake()
    answer = PasskeyAdded(passkey=passkey, recovery_codes=codes.written if are_new else [])
    return json_response(answer, status=201)


class Rename(BaseModel):
    """Another name for a passkey."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64)


class PasskeyAnswer(TypedDict):
    """A passkey."""

    passkey: PasskeyDocument


@operation(PasskeyAnswer, body=Rename, problems=(NotFound, ForeignOrigin))
@guarded
async def rename_passkey(request: web.Request, session: Session) -> web.Response:
    """Call a passkey otherwise."""
    asked, passkey_id = await read_body(request, Rename), path_id(request, "id")
    refuse_unprintable(asked.name)
    async with acting(request, session) as connection:
        passkey = await passkey_queries.rename(connection, session.user_id, passkey_id, asked.name)
    return json_response(PasskeyAnswer(passkey=passkey))


@operation(
    Done,
    problems=(ConfirmationRequired, NotFound, LastFactor, TooManyAttempts, ForeignOrigin),
    event="factor_removed",
)
@guarded
async def remove_passkey(request: web.Request, session: Session) -> web.Response:
    """Remove a passkey; with the last second factor go the recovery codes."""
    mailer = request.app[MAILER]
    async with (
        request.app[REFUNDS].attempt(take, [activity(request, session)]),
        acting_confirmed(request, session) as connection,
    ):
        await passkey_queries.remove(
            connection,
            session.user_id,
            path_id(request, "id"),
            origin(Client.of(request), session),
            two_factors_for=request.app[CONFIG].factors.required_for,
            language=mailer.notices(request),
        )
    mailer.wake()
    return json_response(Done(status="success"))


routes = [
    web.get("/account/passkeys", list_passkeys),
    web.post("/account/passkeys/options", creation_options),
    web.post("/account/passkeys", add_passkey),
    web.patch("/account/passkeys/{id}", rename_passkey),
    web.delete("/account/passkeys/{id}", remove_passkey),
]
