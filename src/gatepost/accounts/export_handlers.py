"""`/account/export`: everything held about me."""

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import hdrs, web

from gatepost.accounts import export_queries as queries
from gatepost.errors import ConfirmationRequired, Unauthorized
from gatepost.http.app import DATABASE
from gatepost.http.operation import operation
from gatepost.postgres.database import Database
from gatepost.sessions.guard import demand_fresh, guarded
from gatepost.sessions.session import Session


@operation(dict[str, Any], problems=(ConfirmationRequired,))
@guarded
async def export(request: web.Request, session: Session) -> web.StreamResponse:
    """Everything held about me, as one JSON document.

    It is read as fast as the client takes it, so that a long history is never in memory as a whole. Where the
    database fails in the midst of it, the answer breaks off.
    """
    demand_fresh(request, session)
    database = request.app[DATABASE]
    begun = await database.read(queries.begin, session.user_id)
    if begun is None:
        raise Unauthorized
    response = web.StreamResponse()
    response.content_type = "application/json"
    response.headers[hdrs.CONTENT_DISPOSITION] = 'attachment; filename="account.json"'  # a page offers it as a file
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD:
        async for piece in _pieces(database, session.user_id, begun):
            await response.write(piece.encode())
    await response.write_eof()
    return response


async def _pieces(database: Database, user_id: str, begun: queries.Begun) -> AsyncIterator[str]:
    yield begun.document.removesuffix("}")
    for part in queries.PARTS:
        yield f', "{part}": ['
        after, comma = 0, ""
        while page := await database.read(queries.page, part, user_id, after, begun.last):
            yield comma + ",".join(event for _, event in page)
            after, comma = page[-1][0], ","
            if len(page) < queries.PAGE:
                break
        yield "]"
    yield "}"


routes = [web.get("/account/export", export)]
