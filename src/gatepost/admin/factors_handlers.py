"""`/admin/users/{id}/factors`: a user's second factors, for operators. All of it demands the role ``admin``."""

from aiohttp import web

from gatepost.admin import access_queries, queries
from gatepost.admin.actor import Actor
from gatepost.errors import ConfirmationRequired, ForeignOrigin, NotFound
from gatepost.factors.passkey_queries import PasskeyDocument, passkeys_of
from gatepost.factors.queries import FactorsAnswer, factors_of
from gatepost.http.app import CONFIG, DATABASE, json_response
from gatepost.http.body import path_id
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.mail.mailer import MAILER
from gatepost.sessions.guard import acting_confirmed, guarded_for
from gatepost.sessions.session import Done, Session


class UserFactors(FactorsAnswer):
    """A user's second factors."""

    passkeys: list[PasskeyDocument]


@operation(UserFactors, problems=(NotFound,))
@guarded_for("admin")
async def list_factors(request: web.Request, _session: Session) -> web.Response:
    """The second factors of a user."""
    user_id = path_id(request, "id")
    if await request.app[DATABASE].read(queries.read, user_id) is None:
        raise NotFound
    factors = (await request.app[DATABASE].read(factors_of, user_id)).document()
    passkeys = await request.app[DATABASE].read(passkeys_of, user_id)
    return json_response(UserFactors(**factors, passkeys=passkeys))


@operation(Done, problems=(NotFound, ConfirmationRequired, ForeignOrigin))
@guarded_for("admin")
async def remove_factors(request: web.Request, session: Session) -> web.Response:
    """Remove all second factors of a user who has lost them; every session ends, and the user is told by mail."""
    user_id, client = path_id(request, "id"), Client.of(request)
    actor = Actor(session.user_id, client.ip, client.user_agent)
    async with acting_confirmed(request, session, role="admin", on=user_id) as connection:
        language = request.app[CONFIG].notice_language
        if await access_queries.remove_factors(connection, user_id, actor, language) is None:
            raise NotFound
    request.app[MAILER].wake()
    return json_response(Done(status="success"))


routes = [
    web.get("/admin/users/{id}/factors", list_factors),
    web.delete("/admin/users/{id}/factors", remove_factors),
]
