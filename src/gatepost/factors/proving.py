"""`/user/factor` and `/user/confirm`: the further step of a login, and proving again who one is."""

import asyncio
import contextlib
import uuid
from typing import Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from gatepost.errors import (
    ConfirmationRequired,
    ForeignOrigin,
    InvalidCode,
    LoginExpired,
    Overloaded,
    Problem,
    TooManyAttempts,
    Unavailable,
    WrongPassword,
)
from gatepost.factors import queries, recovery_codes, totp
from gatepost.factors.parts import VAULT
from gatepost.factors.queries import Candidates, Finish, Proof
from gatepost.factors.vault import Sealed
from gatepost.http.app import CONFIG, DATABASE, REFUNDS, THROTTLE, json_response
from gatepost.http.body import read_body
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.http.tokens import demand_own_origin, is_from_a_page, set_session_cookie
from gatepost.mail.mailer import MAILER
from gatepost.sessions.confirmation import confirming, origin, unless_changed
from gatepost.sessions.guard import guarded
from gatepost.sessions.session import LoginAnswer, Session, hash_token, timestamp


class FurtherStep(BaseModel):
    """The ticket of a login, and one of the proofs that it names."""

    model_config = ConfigDict(strict=True, extra="forbid")

    login: str = Field(repr=False)
    totp: str | None = Field(None, repr=False)
    recovery_code: str | None = Field(None, repr=False)
    cookie: bool = False

    @model_validator(mode="after")
    def _one_proof(self) -> Self:
        if (self.totp is None) == (self.recovery_code is None):
            raise ValueError("give one of totp, recovery_code")
        return self


@operation(
    LoginAnswer,
    body=FurtherStep,
    problems=(LoginExpired, InvalidCode, TooManyAttempts, ForeignOrigin),
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
    async with app[REFUNDS].attempt(queries.find_ticket, ticket_hash, throttle.for_code(client.place)) as (
        ticket,
        taken,
    ):
        proof = await _proof(request, ticket.user_id, ticket.candidates, asked.totp, asked.recovery_code)
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
            queries.finish_login, finish, lifetime=limits.lifetime, max_per_user=limits.max_per_user
        )
    await _reseal(request, ticket.user_id, proof)
    answer = LoginAnswer(session_id=token, expires_at=timestamp(opened.expires_at), user=opened.user.public())
    response = json_response(answer)
    if asked.cookie:
        set_session_cookie(request, response, token)
    return response


class Confirmation(BaseModel):
    """One proof of who one is. For a user with a second factor the password is not enough."""

    model_config = ConfigDict(strict=True, extra="forbid")

    password: str | None = Field(None, repr=False)
    totp: str | None = Field(None, repr=False)
    recovery_code: str | None = Field(None, repr=False)

    @model_validator(mode="after")
    def _one_proof(self) -> Self:
        if sum(proof is not None for proof in (self.password, self.totp, self.recovery_code)) != 1:
            raise ValueError("give one of password, totp, recovery_code")
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
        ConfirmationRequired,
        TooManyAttempts,
        Overloaded,
        Unavailable,
        ForeignOrigin,
    ),
    event="session_confirmed",
)
@guarded
async def confirm_session(request: web.Request, session: Session) -> web.Response:
    """Prove again who I am, for what is answered `confirmation_required`."""
    asked, client, app = await read_body(request, Confirmation), Client.of(request), request.app
    whence = origin(client, session)
    if asked.password is not None:
        password = asked.password

        async def attempt() -> str:
            async with confirming(app, client, session, password) as current:
                return timestamp(
                    await app[DATABASE].write(queries.confirm_by_password, session.user_id, whence, current)
                )

        return json_response(Confirmed(authenticated_at=await unless_changed(attempt)))
    buckets = [app[THROTTLE].for_factor(session.user_id)]
    async with app[REFUNDS].attempt(queries.candidates, session.user_id, buckets) as (candidates, taken):
        proof = await _proof(request, session.user_id, candidates, asked.totp, asked.recovery_code)
        moment = await app[DATABASE].write(queries.confirm_session, session.user_id, whence, proof, taken)
    await _reseal(request, session.user_id, proof)
    return json_response(Confirmed(authenticated_at=timestamp(moment)))


async def _proof(
    request: web.Request, user_id: str, candidates: Candidates, code: str | None, recovery_code: str | None
) -> Proof:
    """What the given code is; whether it still counts is for the statement to judge."""
    if code is None:
        return Proof(
            recovery=recovery_codes.hash_given(recovery_code or ""), language=request.app[MAILER].notices(request)
        )
    vault = request.app[VAULT]
    return Proof(await asyncio.to_thread(totp.match, code, candidates.factors, user_id, vault, candidates.now))


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
        await request.app[DATABASE].write(queries.reseal, factor, await asyncio.to_thread(anew))


routes = [web.post("/user/factor", finish_login), web.post("/user/confirm", confirm_session)]
