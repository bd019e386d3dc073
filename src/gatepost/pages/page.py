"""What a page is: a template in the visitor's language, under a policy that lets it load nothing from elsewhere."""

import asyncio
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from aiohttp import hdrs, web
from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    PackageLoader,
    StrictUndefined,
)
from markupsafe import Markup

from gatepost.config import Config, ConfigError
from gatepost.errors import Problem, Unauthorized
from gatepost.http.app import CONFIG, RENDERER, Handler
from gatepost.http.tokens import demand_own_origin
from gatepost.mail.mailer import preferred
from gatepost.pages import return_to
from gatepost.pages.assets import Assets
from gatepost.pages.languages import Words
from gatepost.pages.wording import at_fields, sentence
from gatepost.sessions.guard import GuardedHandler, caller, no_session
from gatepost.sessions.session import Session

FIRST_FACTOR = "/me/factors"
"""The only page for a user who must add a second factor first."""


class Pages:
    """Renders them. Templates of the operator take the place of ours, one by one."""

    def __init__(self, config: Config, assets: Assets, words: Mapping[str, Words]) -> None:
        own = [FileSystemLoader(config.pages.templates)] if config.pages.templates else []
        self._environment = Environment(
            loader=ChoiceLoader([*own, PackageLoader("gatepost.pages")]),
            autoescape=True,
            undefined=StrictUndefined,
            extensions=["jinja2.ext.i18n"],
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.newstyle_gettext = True  # type: ignore[attr-defined]
        self._config = config
        self._words = words
        self._assets = assets
        targets = " ".join(["'self'", *config.pages.return_to])
        # form-action also judges where a sent form is redirected to.
        self._policy = (
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
            f"form-action {targets}; base-uri 'none'; frame-ancestors 'none'"
        )

    @classmethod
    async def open(cls, config: Config) -> Self:
        """Raises ConfigError for a logo or a template that cannot be used."""
        return await asyncio.to_thread(cls._open, config)

    @classmethod
    def _open(cls, config: Config) -> Self:
        return cls(config, Assets(config.pages), {each: Words.of(each) for each in config.pages.languages})

    @property
    def assets(self) -> Assets:
        """The files that pages refer to."""
        return self._assets

    def words(self, request: web.Request) -> Words:
        """Those of the language that the visitor's browser asks for."""
        languages = self._config.pages.languages
        wanted = preferred(request.headers.get(hdrs.ACCEPT_LANGUAGE, "")[:256], languages[0], languages)
        return self._words[wanted]

    def html(self, template: str, words: Words, values: Mapping[str, Any]) -> str:
        """The page as text. Raises whatever a template of the operator does."""
        given = {
            "gettext": _translating(words),
            "ngettext": _translating_many(words),
            "words": words,
            "service": self._config.pages.name,
            "assets": self._assets,
            "config": self._config,
            "session": None,
            "problem": None,
            "errors": {},
            "form": {},
            "notice": None,
            "path": "",
        }
        return self._environment.get_template(template).render({**given, **values})

    def answer(
        self,
        request: web.Request,
        template: str,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **values: Any,
    ) -> web.Response:
        """The page as an answer."""
        words = self.words(request)
        return web.Response(
            text=self.html(template, words, {"path": request.path, **values}),
            status=status,
            content_type="text/html",
            headers={
                "Content-Security-Policy": self._policy,
                "Cross-Origin-Opener-Policy": "same-origin",
                "Referrer-Policy": "same-origin",
                hdrs.CONTENT_LANGUAGE: words.language,
                hdrs.VARY: hdrs.ACCEPT_LANGUAGE,
                **(headers or {}),
            },
        )

    def try_templates(self, folder: Path, states: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        """Render every state once with the operator's templates, so that a mistake is told before anything starts.

        Raises ConfigError.
        """
        if not folder.is_dir():
            raise ConfigError(f"pages.templates: {folder} is no folder")
        known = set(PackageLoader("gatepost.pages").list_templates())
        given = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        if unknown := sorted(given - known):
            raise ConfigError(f"pages.templates: {folder / unknown[0]} is no template of ours")
        for name, (template, values) in states.items():
            for words in self._words.values():
                try:
                    self.html(template, words, values)
                except Exception as error:  # noqa: BLE001 (a template may do anything)
                    raise ConfigError(f"pages.templates: {template} ({name}, {words.language}): {error}") from None


PAGES = web.AppKey("pages", Pages)


def _translating(words: Words) -> Callable[..., str]:
    def translate(text: str, /, **values: object) -> str:
        return Markup(words.gettext(text)) % values  # noqa: S704 (ours; what is put into it is escaped)

    return translate


def _translating_many(words: Words) -> Callable[..., str]:
    def translate(one: str, many: str, number: int, /, **values: object) -> str:
        return Markup(words.ngettext(one, many, number)) % {"num": number, **values}  # noqa: S704

    return translate


# ---------------------------------------------------------------------------------------------------- handlers


def show(request: web.Request, template: str, **values: Any) -> web.Response:
    """A page, for this request."""
    return request.app[PAGES].answer(request, template, **values)


def show_problems_on(
    request: web.Request, template: str, *, about: Mapping[str, str] | None = None, **values: Any
) -> None:
    """Let whatever goes wrong from here on be told on this page, beside the field that it is about.

    ``about``: which field a problem as a whole is about, by its code.
    """
    pages, config = request.app[PAGES], request.app[CONFIG]
    words = pages.words(request)

    def render(problem: Problem) -> web.Response:
        errors = at_fields(problem, words, config, about or {})
        said = {"problem": sentence(problem, words), "errors": errors}
        headers = {name: value for name, value in problem.headers.items() if name != hdrs.WWW_AUTHENTICATE}
        return pages.answer(request, template, status=problem.status, headers=headers, **(values | said))

    request[RENDERER] = render


def tell_as_page(request: web.Request) -> None:
    """Let whatever goes wrong be told on a page of its own."""
    show_problems_on(request, "problem.html")


def told(request: web.Request, problem: Problem) -> dict[str, Any]:
    """What a page shows of a problem for which it is shown all the same."""
    words = request.app[PAGES].words(request)
    said = {"problem": sentence(problem, words), "errors": at_fields(problem, words, request.app[CONFIG], {})}
    return {**said, "status": problem.status}


def target_of(request: web.Request, asked: str) -> str:
    """Where ``asked`` leads, if one may be sent there (`return_to.safe`)."""
    return return_to.safe(asked, request.app[CONFIG].pages.return_to)


def go(target: str) -> web.Response:
    """Send the browser to another page."""
    return web.Response(status=303, headers={hdrs.LOCATION: target})


def page(handler: Handler) -> Handler:
    """A page's handler: its errors are told as a page, and only pages of ours may send its forms."""

    @wraps(handler)
    async def of_a_page(request: web.Request) -> web.StreamResponse:
        tell_as_page(request)
        if request.method == hdrs.METH_POST:
            demand_own_origin(request)
        return await handler(request)

    return of_a_page


async def visitor(request: web.Request) -> Session | None:
    """The session of whoever looks at a page; None for somebody who is not signed in."""
    try:
        session = await caller(request, restricted=True)
    except Unauthorized:
        return None
    if session is None:
        no_session(request)  # counted; who looks up too many in vain still sees the page that everybody sees
    return session


def signed_in(role: str | None = None, *, back: str | None = None) -> Callable[[GuardedHandler], Handler]:
    """A page of whoever is signed in, and has ``role``; anybody else is sent to sign in first, and comes back.

    ``back``: the page on which the form stands, of a path that takes one.
    """

    def for_users(handler: GuardedHandler) -> Handler:
        @wraps(handler)
        async def of_a_user(request: web.Request) -> web.StreamResponse:
            session = await visitor(request)
            here = back.format(**request.match_info) if back else request.raw_path
            if session is None:
                return _to_sign_in(here)
            if session.restricted and not request.path.startswith(FIRST_FACTOR):
                return go(FIRST_FACTOR)
            if role is not None and role not in session.roles:
                form = {"return_to": here}
                return show(request, "forbidden.html", status=403, session=session, roles=[role], form=form)
            show_problems_on(request, "problem.html", session=session)
            try:
                return await handler(request, session)
            except Unauthorized:  # the session has ended meanwhile
                return _to_sign_in(here)

        return page(of_a_user)

    return for_users


def _to_sign_in(back: str) -> web.Response:
    return go("/sign-in?return_to=" + quote(back, safe="/"))
