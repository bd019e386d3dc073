"""The verifier for services that have no event loop: Django, Flask, scripts."""

import asyncio
import os
import threading
from functools import partial
from typing import Literal, NamedTuple

from gatepost_client.identity import NotKnown, SignedIn
from gatepost_client.verifier import Verifier

# Seconds beyond the verifier's own timeout, for the threads to change places.
_SPARE = 1.0


class _Running(NamedTuple):
    process: int
    loop: asyncio.AbstractEventLoop
    verifier: Verifier


class SyncVerifier:
    """`Verifier` on an event loop in a thread of its own, so that checks of all threads share their calls.

    It starts with the first check, in each process anew: a server may fork its workers after it was made.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        mode: Literal["strict", "leased"] = "strict",
        timeout: float = 2.0,
        most: int = 100_000,
    ) -> None:
        self._make = partial(Verifier, url, token, mode=mode, timeout=timeout, most=most)
        self._make()  # a wrong mode is refused here
        self._patience = timeout + _SPARE
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def check(self, token: str | None) -> SignedIn | None:
        """Whose session this is; None for no session. Raises NotKnown."""
        if token is None:
            return None
        running = self._start()
        if (kept := running.verifier.peek(token)) is not None:
            return kept
        asked = asyncio.run_coroutine_threadsafe(running.verifier.check(token), running.loop)
        try:
            return asked.result(self._patience)
        except TimeoutError:
            asked.cancel()
            raise NotKnown("the check took too long") from None

    def close(self) -> None:
        """End the thread. A later check starts another."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None and running.process == os.getpid():
            asyncio.run_coroutine_threadsafe(running.verifier.close(), running.loop).result(self._patience)
            running.loop.call_soon_threadsafe(running.loop.stop)

    def _start(self) -> _Running:
        running = self._running
        if running is not None and running.process == os.getpid():
            return running
        with self._lock:
            if self._running is None or self._running.process != os.getpid():
                loop, verifier = asyncio.new_event_loop(), self._make()
                threading.Thread(target=_serve, args=(loop,), name="gatepost", daemon=True).start()
                asyncio.run_coroutine_threadsafe(verifier.start(), loop).result(self._patience)
                self._running = _Running(os.getpid(), loop, verifier)
            return self._running


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()
