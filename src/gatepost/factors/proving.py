"""`/user/factor`, `/user/passkey`, `/user/confirm`: the further step of a login, a passkey in its place, and proving
again who one is.
"""

import asyncio
import contextlib
import uuid
from typing import Any, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from gatepost.errors import (
    ConfirmationRequired,
    ForeignOrigin,
    InvalidCode,
    InvalidPasskey,
    LoginExpired,
    NotFound,
    Overloaded,
    PasskeyUnknown,
    Problem,
    TooManyAttempts,
    Unavailable,
    WrongPassword,
)
from gatepost.factors import passkey_queries, proving_queries, recovery_codes, totp
from gatepost.factors.parts import PASSKEYS, VAULT, relying_party
from gatepost.factors.passkeys import Refused, Signed, credential_id
from gatepost.factors.proving_queries import Finish, Proof
from gatepost.factors.queries import Candidates
from gatepost.factors.vault import Sealed
from gatepost.http.app import CONFIG, DATABASE, REFUNDS, THROTTLE, json_response
from gatepost.http.body import read_body
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.http.tokens import demand_own_origin, is_from_a_page, set_session_cookie
from gatepost.mail.mailer import MAILER
from gatepost.sessions.confirmation import confirming, origin, unless_changed
from gatepost.sessions.guard import guarded_also_without_factor
from gatepost.sessions.queries import Opened
from gatepost.sessions.session import LoginAnswer, Session, hash_token, timestamp


class FurtherStep(BaseModel):
    """The ticket of a login, and one of the proofs that it names."""

    model_config = ConfigDict(strict=True, extra="forbid")

    login: str = Field(repr=False)
    totp: str | None = Field(None, repr=False)
    recovery_code: str | None = Field(None, repr=False)
    passkey: dict[str, Any] | None = Field(None, repr=False)
    cookie: bool = False

    @model_validator(mode="after")
    def _one_proof(self) -> Self:
        if sum(proof is not None for proof in (self.totp, self.recovery_code, self.passkey)) != 1:
            raise ValueError("give one of totp, recovery_code, passkey")
        return self


@operation(
    LoginAnswer,
    body=FurtherStep,
    problems=(LoginExpired, InvalidCode, InvalidPasskey, TooManyAttempts, ForeignOrigin),
    event="authn_login_success",
)
async def finish_login(request: web.Request) -> web.Response:
    """Go on with a login that was answered `second_factor_required`: a code opens the session.

    After five wrong codes, ten minutes, or a change of the password, the login begins anew.
    """
    app, asked, client = request.app, await read_body(request, FurtherStep), Client.of(request)
    if asked.cookie and is_from_a_page(request):
        demand_own_origin(request)
    limits, throttle = app[CONFIG].sessions, app[THROTTLE]
    ticket_hash, token = hash_token(asked.login.encode("ascii", "replace").decode()), str(uuid.uuid4())
    async with app[REFUNDS].attempt(proving_queries.find_ticket, ticket_hash, throttle.for_code(client.place)) as (
        ticket,
        taken,
    ):
        proof = await _proof(request, ticket.user_id, ticket.candidates, asked)
        finish = Finish(
            ticket_hash,
            proof,
            hash_token(token),
            throttle.for_factor(ticket.user_id),
            client.ip,
            client.user_agent,
            throttle.known_place(client.place),
            taken,
        )
        opened = await app[DATABASE].write(
            proving_queries.finish_login, finish, lifetime=limits.lifetime, max_per_user=limits.max_per_user
        )
    await _reseal(request, ticket.user_id, proof)
    return _opened(request, token, opened, cookie=asked.cookie)


class Confirmation(BaseModel):
    """One proof of who one is. For a user with a second factor the password is not enough."""

    model_config = ConfigDict(strict=True, extra="forbid")

    password: str | None = Field(None, repr=False)
    totp: str | None = Field(None, repr=False)
    recovery_code: str | None = Field(None, repr=False)
    passkey: dict[str, Any] | None = Field(None, repr=False)

    @model_validator(mode="after")
    def _one_proof(self) -> Self:
        if sum(proof is not None for proof in (self.password, self.totp, self.recovery_code, self.passkey)) != 1:
            raise ValueError("give one of password, totp, recovery_code, passkey")
        return self


class Confirmed(TypedDict):
    """When the session's user has last proved who it is."""

    authenticated_at: str


@operation(
    Confirmed,
    body=Confirmation,
    problems=(
        WrongPassword,
        InvalidCode,
        InvalidPasskey,
        ConfirmationRequired,
        TooManyAttempts,
        Overloaded,
        Unavailable,
        ForeignOrigin,
    ),
    event="session_confirmed",
)
@guarded_also_without_factor
async def confirm_session(request: web.Request, session: Session) -> web.Response:
    """Prove again who I am, for what is answered `confirmation_required`."""
    asked, client, app = await read_body(request, Confirmation), Client.of(request), request.app
    whence = origin(client, session)
    if asked.password is not None:
        password = asked.password

        async def attempt() -> str:
            async with confirming(app, client, session, password) as current:
                return timestamp(
                    await app[DATABASE].write(proving_queries.confirm_by_password, session.user_id, whence, current)
                )

        return json_response(Confirmed(authenticated_at=await unless_changed(attempt)))
    buckets = [app[THROTTLE].for_factor(session.user_id)]
    async with app[REFUNDS].attempt(proving_queries.find_candidates, session.user_id, buckets) as (candidates, taken):
        proof = await _proof(request, session.user_id, candidates, asked)
        moment = await app[DATABASE].write(proving_queries.confirm_session, session.user_id, whence, proof, taken)
    await _reseal(request, session.user_id, proof)
    return json_response(Confirmed(authenticated_at=timestamp(moment)))


async def _proof(
    request: web.Request, user_id: str, candidates: Candidates, asked: FurtherStep | Confirmation
) -> Proof:
    """Read what was given. Whether it still counts, the statement judges. Raises InvalidPasskey."""
    if asked.passkey is not None:
        return Proof(signed=await _signed(request, user_id, asked.passkey))
    if asked.totp is None:
        language = request.app[MAILER].notices(request)
        return Proof(recovery=recovery_codes.hash_given(asked.recovery_code or ""), language=language)
    vault = request.app[VAULT]
    return Proof(await asyncio.to_thread(totp.match, asked.totp, candidates.factors, user_id, vault, candidates.now))


async def _signed(request: web.Request, user_id: str, credential: dict[str, Any]) -> Signed:
    """What a passkey of this user has signed. Raises InvalidPasskey."""
    client, database, party = Client.of(request), request.app[DATABASE], request.app[PASSKEYS].party
    try:
        if party is None:
            raise Refused("unknown")
        passkey = await database.read(passkey_queries.of_user, user_id, credential_id(credential))
        if passkey is None:
            raise Refused("unknown")
        return await asyncio.to_thread(party.signed, credential, passkey)
    except Refused as refused:
        await database.write(passkey_queries.note_refused, user_id, refused.reason, client.ip, client.user_agent)
        raise InvalidPasskey from None


async def _reseal(request: web.Request, user_id: str, proof: Proof) -> None:
    """Put the secret that was used under the current key. It is done already: a failure is left for the next time."""
    if proof.recovery is not None:
        request.app[MAILER].wake()
    vault = request.app[VAULT]
    if proof.match is None or proof.match.factor.sealed.key == vault.current:
        return
    factor = proof.match.factor

    def anew() -> Sealed:
        return vault.seal(vault.open(factor.sealed, user_id), user_id)

    with contextlib.suppress(Problem):
        await request.app[DATABASE].write(proving_queries.reseal, factor, await asyncio.to_thread(anew))


class RequestOptions(TypedDict):
    """What `navigator.credentials.get` is given: PublicKeyCredentialRequestOptionsJSON of WebAuthn."""

    publicKey: dict[str, Any]


@operation(RequestOptions, problems=(NotFound,))
async def request_options(request: web.Request) -> web.Response:
    """Begin to use a passkey: what the browser is asked; it counts for five minutes."""
    return json_response(RequestOptions(publicKey=relying_party(request).request_options()))


class PasskeySignIn(BaseModel):
    """What the browser has signed: AuthenticationResponseJSON of WebAuthn."""

    model_config = ConfigDict(strict=True, extra="forbid")

    credential: dict[str, Any] = Field(repr=False)
    cookie: bool = False


@operation(
    LoginAnswer,
    body=PasskeySignIn,
    problems=(PasskeyUnknown, NotFound, TooManyAttempts, ForeignOrigin),
    event="authn_login_success",
)
async def sign_in(request: web.Request) -> web.Response:
    """Open a session with a passkey alone: it says whose it is, and the device has asked for a finger or a PIN."""
    app, party = request.app, relying_party(request)
    asked, client = await read_body(request, PasskeySignIn), Client.of(request)
    if asked.cookie and is_from_a_page(request):
        demand_own_origin(request)
    limits, throttle, token = app[CONFIG].sessions, app[THROTTLE], str(uuid.uuid4())
    try:
        called = credential_id(asked.credential)
    except Refused:
        raise PasskeyUnknown from None
    async with app[REFUNDS].attempt(passkey_queries.find_passkey, called, throttle.for_code(client.place)) as (
        found,
        taken,
    ):
        if found is None:
            raise PasskeyUnknown
        try:
            signed = await asyncio.to_thread(party.signed, asked.credential, found.passkey)
        except Refused as refused:
            await app[DATABASE].write(
                passkey_queries.note_refused, found.passkey.user_id, refused.reason, client.ip, client.user_agent
            )
            raise PasskeyUnknown from None
        opened = await app[DATABASE].write(
            passkey_queries.sign_in,
            passkey_queries.SignIn(
                signed,
                hash_token(token),
                throttle.for_activity(found.canonical),
                client.ip,
                client.user_agent,
                throttle.known_place(client.place),
                taken,
            ),
            lifetime=limits.lifetime,
            max_per_user=limits.max_per_user,
        )
    return _opened(request, token, opened, cookie=asked.cookie)


def _opened(request: web.Request, token: str, opened: Opened, *, cookie: bool) -> web.Response:
    answer = LoginAnswer(session_id=token, expires_at=timestamp(opened.expires_at), user=opened.user.public())
    response = json_response(answer)
    if cookie:
        set_session_cookie(request, response, token)
    return response


routes = [
    web.post("/user/factor", finish_login),
    web.post("/user/passkey/options", request_options),
    web.post("/user/passkey", sign_in),
    web.post("/user/confirm", confirm_session),
]
