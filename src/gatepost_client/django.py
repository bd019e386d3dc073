"""For Django: a middleware that knows whose request it is, and users of yours that mirror Gatepost's by id.

    MIDDLEWARE = [..., "gatepost_client.django.GatepostMiddleware"]   # after AuthenticationMiddleware, if it is there
    AUTHENTICATION_BACKENDS = ["gatepost_client.django.GatepostBackend"]
    GATEPOST = {"url": "https://auth.example", "token": os.environ["GATEPOST_SERVICE_TOKEN"], "mode": "leased"}

Nothing is kept in Django's own session, so what Gatepost revokes is revoked here.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from django.conf import settings
from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser
from django.http import HttpResponse

from gatepost_client.identity import NotKnown, SignedIn
from gatepost_client.request import session_token
from gatepost_client.sync import SyncVerifier


@cache
def verifier() -> SyncVerifier:
    """The verifier that ``settings.GATEPOST`` describes: `url`, `token`, and what else `SyncVerifier` takes."""
    return SyncVerifier(**settings.GATEPOST)


class GatepostMiddleware:
    """Sets ``request.signed_in`` (SignedIn or None) and ``request.user`` for requests with a session's token.

    A token of no session is 401, and 503 says that it is not known. A request without a token is anonymous; what
    signed it in otherwise stays.
    """

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response

    def __call__(self, request: Any) -> Any:
        """Handle a request."""
        token = session_token(request.method, request.headers.get)
        request.signed_in = None
        if token is None:
            if not hasattr(request, "user"):
                request.user = AnonymousUser()
            return self._get_response(request)
        try:
            found = verifier().check(token)
        except NotKnown as error:
            return HttpResponse(status=503, headers={"Retry-After": str(error.retry_after)})
        if found is None:
            return HttpResponse(status=401, headers={"WWW-Authenticate": "Bearer"})
        user = authenticate(request, signed_in=found)
        if user is None:  # disabled here, or there is no backend for it
            return HttpResponse(status=403)
        request.signed_in = found
        request.user = user
        # No page of another origin can have sent this: see `session_token`.
        request._dont_enforce_csrf_checks = True  # noqa: SLF001 (as Django's own test client does)
        return self._get_response(request)


class GatepostBackend(ModelBackend):  # type: ignore[misc]
    """Mirrors Gatepost's users: each has one of Django's, whose username is the id, made at the first request."""

    def authenticate(self, request: Any, *, signed_in: SignedIn | None = None, **_: Any) -> Any:  # noqa: ARG002
        """The mirrored user; None for other credentials, and for one that is not active here."""
        if signed_in is None:
            return None
        model = get_user_model()
        # `_default_manager`: documented for apps that take any user model.
        user, _made = model._default_manager.get_or_create(**{model.USERNAME_FIELD: signed_in.user_id})  # noqa: SLF001
        return user if self.user_can_authenticate(user) else None
