"""For Flask: a decorator.

In an application::

    gatepost = Gatepost("https://auth.example", token)

    @app.get("/notes")
    @gatepost.signed_in(role="staff")
    def notes():
        who = g.signed_in
"""

import functools
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

from flask import g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, ServiceUnavailable, Unauthorized

from gatepost_client.identity import NotKnown
from gatepost_client.request import session_token
from gatepost_client.sync import SyncVerifier

P = ParamSpec("P")
T = TypeVar("T")


class Gatepost:
    """A verifier and its decorator."""

    def __init__(
        self, url: str, token: str, *, mode: Literal["strict", "leased"] = "strict", timeout: float = 2.0
    ) -> None:
        self.verifier = SyncVerifier(url, token, mode=mode, timeout=timeout)

    def signed_in(self, role: str | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Demand a session: 401 without one, 403 without ``role``, 503 when it is not known. The view finds who it is
        in ``flask.g.signed_in``.
        """

        def decorate(view: Callable[P, T]) -> Callable[P, T]:
            @functools.wraps(view)
            def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
                try:
                    found = self.verifier.check(session_token(request.method, request.headers.get))
                except NotKnown as error:
                    raise ServiceUnavailable(retry_after=error.retry_after) from error
                if found is None:
                    raise Unauthorized(www_authenticate=WWWAuthenticate("bearer"))
                if role is not None and role not in found.roles:
                    raise Forbidden
                g.signed_in = found
                return view(*args, **kwargs)

            return guarded

        return decorate
