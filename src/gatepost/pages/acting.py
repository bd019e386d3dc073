"""Pages and their forms: each asks a handler of the API, and goes on after a confirmation that it is still you."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gatepost.errors import ConfirmationRequired, Problem, Unauthorized
from gatepost.http.app import Handler
from gatepost.http.body import GIVEN
from gatepost.http.operation import Operation, operation
from gatepost.pages.confirmation import ask_for_confirmation, confirm
from gatepost.pages.forms import Answer, Form, ask, read_form
from gatepost.pages.page import go, show, show_problems_on, signed_in
from gatepost.sessions.session import Session

ROWS = "25"
"""Of a list on one page, as the handler of the API is asked; the next ones are behind a link."""

Shown = dict[str, Any]
Read = Callable[[web.Request, Session], Awaitable[Shown]]


async def nothing(_request: web.Request, _session: Session) -> Shown:
    """What a page shows that needs nothing from the database."""
    return {}


@dataclass(frozen=True, slots=True)
class Page:
    """A page of whoever is signed in: its path, its template, how what it shows is read, and for which role it is."""

    path: str
    template: str
    read: Read = nothing
    role: str | None = None

    def route(self) -> web.RouteDef:
        """The route that shows it."""

        @signed_in(self.role)
        async def show_page(request: web.Request, session: Session) -> web.Response:
            values = await self.read(request, session)
            return show(request, self.template, session=session, notice=request.query.get("done"), **values)

        return web.get(self.path, show_page)


@dataclass(frozen=True, slots=True)
class Act:
    """A form on a page.

    - ``handler``: of the API, which does what the form asks for.
    - ``fields``: those that it is given, by the name that it calls them; ``secret`` ones are never shown again.
    - ``body``: what it is given, where that is not the fields as they are.
    - ``done``: what is said afterwards, on ``to`` or else the page.
    - ``told``: a part of what the handler answers that is told only once, on the page ``answer``.
    - ``about``: which field a problem as a whole is about, by its code.
    - ``download``: whether the handler answers with a file.
    """

    page: Page
    path: str
    handler: Handler
    done: str
    fields: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    body: Callable[[Form], dict[str, Any]] | None = None
    to: str | None = None
    told: str = ""
    answer: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    download: bool = False

    def route(self) -> web.RouteDef:
        """The route that takes it."""

        note = getattr(self.handler, "__operation__", Operation(None))

        @signed_in(self.page.role, back=self.page.path)
        @operation(None, event=note.event)
        async def act(request: web.Request, session: Session) -> web.StreamResponse:
            form = await read_form(request)
            shown = {name: form[name] for name in self.fields if name in form}
            again = {"action": request.path, "kept": shown, "secret": self.secret}
            await confirm(request, session, form, again)
            try:
                if self.download:
                    request[GIVEN] = {}
                    return await self.handler(request)
                answer = await ask(request, self.handler, **self._given(form))
            except ConfirmationRequired:
                await ask_for_confirmation(request, session, again)
                raise
            except Unauthorized:
                raise
            except Problem:
                values = await self.page.read(request, session)
                show_problems_on(request, self.page.template, about=self.about, session=session, form=shown, **values)
                raise
            return self._done(request, session, answer)

        return web.post(self.path, act)

    def _given(self, form: Form) -> dict[str, Any]:
        if self.body:
            return self.body(form)
        return {name: form.get(name, "") for name in (*self.fields, *self.secret)}

    def _done(self, request: web.Request, session: Session, answer: Answer) -> web.Response:
        if self.told and answer.document[self.told]:
            return show(request, self.answer, session=session, answer=answer.document)
        response = go(f"{self.to or self.page.path}?done={self.done}".format(**request.match_info))
        answer.give_cookies(response)
        return response
