"""For FastAPI and Starlette: whose request is this, as a dependency.

In an application::

    gatepost = Gatepost("https://auth.example", token, mode="leased")
    app = FastAPI(lifespan=gatepost.lifespan)

    @app.get("/notes")
    async def notes(who: Annotated[SignedIn, Depends(gatepost.signed_in())]) -> …
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from gatepost_client.identity import NotKnown, SignedIn
from gatepost_client.request import session_token
from gatepost_client.verifier import Verifier

__all__ = ["Gatepost", "SignedIn"]


class Gatepost:
    """A verifier that starts and stops with the application (``lifespan``), and its dependencies."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        mode: Literal["strict", "leased"] = "strict",
        timeout: float = 2.0,
    ) -> None:
        self.verifier = Verifier(url, token, mode=mode, timeout=timeout)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Any) -> AsyncIterator[None]:
        """Give it to the application, or enter it in a lifespan of your own."""
        async with self.verifier:
            yield

    def signed_in(self, role: str | None = None) -> Callable[[HTTPConnection], Awaitable[SignedIn]]:
        """A dependency: who is signed in. 401 without a session, 403 without ``role``, 503 when it is not known."""

        async def who(connection: HTTPConnection) -> SignedIn:
            method = connection.scope.get("method", "")  # none: a WebSocket
            try:
                found = await self.verifier.check(session_token(method, connection.headers.get))
            except NotKnown as error:
                raise HTTPException(503, headers={"Retry-After": str(error.retry_after)}) from error
            if found is None:
                raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
            if role is not None and role not in found.roles:
                raise HTTPException(403)
            return found

        return who
