"""`/account/emails`: the mail addresses of whoever is signed in."""

import asyncio

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from gatepost.errors import (
    ConfirmationRequired,
    EmailTaken,
    InvalidCode,
    NotFound,
    Overloaded,
    TooManyAttempts,
    TooManyEmails,
    Unavailable,
    WrongPassword,
)
from gatepost.http.app import DATABASE, REFUNDS, THROTTLE, json_response
from gatepost.http.body import path_id, read_body
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.mail import queries
from gatepost.mail.codes import hash_given, hash_link
from gatepost.mail.mailer import Mailer, parse_field
from gatepost.mail.queries import Email, EmailDocument
from gatepost.security.throttle import Bucket, take
from gatepost.sessions.confirmation import confirming, origin, unless_changed
from gatepost.sessions.guard import acting, acting_confirmed, guarded
from gatepost.sessions.session import Done, Session


class EmailsAnswer(TypedDict):
    """One's own addresses, the primary one first."""

    emails: list[EmailDocument]


class EmailAnswer(TypedDict):
    """One address."""

    email: EmailDocument


@operation(EmailsAnswer, problems=(NotFound,))
@guarded
async def show(request: web.Request, session: Session) -> web.Response:
    """My mail addresses."""
    Mailer.demand(request)
    emails = await request.app[DATABASE].read(queries.emails_of, session.user_id)
    return json_response(EmailsAnswer(emails=[each.document() for each in emails]))


class NewEmail(BaseModel):
    """An address to add. It takes the password: whoever has an address can choose a new one."""

    model_config = ConfigDict(strict=True, extra="forbid")

    email: str
    password: str = Field(repr=False)


@operation(
    EmailAnswer,
    status=201,
    body=NewEmail,
    problems=(WrongPassword, ConfirmationRequired, TooManyAttempts, TooManyEmails, Overloaded, Unavailable, NotFound),
    event="email_added",
)
@guarded
async def add(request: web.Request, session: Session) -> web.Response:
    """Add an address; a code is mailed to it. Added again, it gets another one."""
    mailer = Mailer.demand(request)
    asked = await read_body(request, NewEmail)
    client, throttle, address = Client.of(request), request.app[THROTTLE], parse_field("email", asked.email)
    buckets = sorted([throttle.for_activity(session.canonical), throttle.for_claim(address.canonical)])

    async def attempt() -> Email:
        async with (
            request.app[REFUNDS].attempt(take, buckets),
            confirming(request.app, client, session, asked.password) as current,
        ):
            return await request.app[DATABASE].write(
                queries.add,
                session.user_id,
                origin(client, session),
                current=current,
                address=address,
                language=mailer.language(request),
            )

    added = await unless_changed(attempt)
    mailer.wake()
    return json_response(EmailAnswer(email=added.document()), status=201)


class MailedCode(BaseModel):
    """A code from a mail: what it says to type, or what its link holds."""

    model_config = ConfigDict(strict=True, extra="forbid")

    code: str = Field(repr=False)


@operation(EmailAnswer, body=MailedCode, problems=(InvalidCode, TooManyAttempts, EmailTaken), event="email_verified")
@guarded
async def verify(request: web.Request, session: Session) -> web.Response:
    """Prove with the code from the mail that an address is mine."""
    mailer = Mailer.demand(request)
    asked, email_id = await read_body(request, MailedCode), path_id(request, "id")
    client = Client.of(request)
    buckets = [*request.app[THROTTLE].for_typed_code(email_id, client.place), _activity(request, session)]
    async with request.app[REFUNDS].attempt(take, sorted(buckets)):
        code_hash = await asyncio.to_thread(hash_given, asked.code, "verify_email", email_id)
        async with acting(request, session) as connection:
            verified = await queries.verify(
                connection,
                session.user_id,
                email_id,
                origin(client, session),
                code_hash=code_hash,
                language=mailer.language(request),
            )
    mailer.wake()
    return json_response(EmailAnswer(email=verified.document()))


@operation(EmailAnswer, problems=(ConfirmationRequired, TooManyAttempts), event="email_primary_changed")
@guarded
async def make_primary(request: web.Request, session: Session) -> web.Response:
    """Let mail go to this verified address; the others are told, and can undo it."""
    mailer = Mailer.demand(request)
    async with (
        request.app[REFUNDS].attempt(take, [_activity(request, session)]),
        acting_confirmed(request, session) as connection,
    ):
        whence = origin(Client.of(request), session)
        primary = await queries.make_primary(
            connection, session.user_id, path_id(request, "id"), whence, mailer.language(request)
        )
    mailer.wake()
    return json_response(EmailAnswer(email=primary.document()))


@operation(Done, problems=(ConfirmationRequired, TooManyAttempts), event="email_removed")
@guarded
async def remove(request: web.Request, session: Session) -> web.Response:
    """Remove an address; it is told, or one that was verified before it, and can undo it."""
    mailer = Mailer.demand(request)
    async with (
        request.app[REFUNDS].attempt(take, [_activity(request, session)]),
        acting_confirmed(request, session) as connection,
    ):
        whence = origin(Client.of(request), session)
        await queries.remove(connection, session.user_id, path_id(request, "id"), whence, mailer.language(request))
    mailer.wake()
    return json_response(Done(status="success"))


@operation(
    Done,
    body=MailedCode,
    problems=(InvalidCode, TooManyAttempts, EmailTaken, NotFound),
    event="email_changes_undone",
)
async def undo(request: web.Request) -> web.Response:
    """Undo changes of addresses with the code from the notice; every session and the password end.

    Addresses that were verified after the one that comes back go. To that one, a code for a new password is mailed.
    """
    mailer = Mailer.demand(request)
    asked, client = await read_body(request, MailedCode), Client.of(request)
    async with (
        request.app[REFUNDS].attempt(take, request.app[THROTTLE].for_code(client.place)),
        request.app[DATABASE].transaction() as connection,
    ):
        await queries.undo(
            connection,
            hash_link(asked.code),
            ip=client.ip,
            user_agent=client.user_agent,
            language=mailer.language(request),
        )
    mailer.wake()
    return json_response(Done(status="success"))


def _activity(request: web.Request, session: Session) -> Bucket:
    return request.app[THROTTLE].for_activity(session.canonical)


routes = [
    web.get("/account/emails", show),
    web.post("/account/emails", add),
    web.post("/account/emails/undo", undo),
    web.post("/account/emails/{id}/verify", verify),
    web.put("/account/emails/{id}/primary", make_primary),
    web.delete("/account/emails/{id}", remove),
]
