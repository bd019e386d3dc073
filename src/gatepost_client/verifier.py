"""Checks session tokens for a service: every time at Gatepost (strict), or from memory under a lease (leased)."""

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncGenerator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import aiohttp

from gatepost_client.identity import NotKnown, SignedIn, is_token
from gatepost_client.lease import Lease, clock

log = logging.getLogger("gatepost_client")

# Tokens in one call, of the 500 that `POST /authz/check` takes, and calls under way at once. What arrives meanwhile
# goes together in the next ones. (Measured with 256 callers: 13,100 checks a second with 500 and 2, 17,900 so.)
MAX_BATCH = 128
CALLS = 4
# Seconds without a byte after which a stream is given up: it brings several heartbeats in that time.
SILENCE = 2.0
# Seconds after which a stream is opened anew: the two clocks are compared at its beginning, and a lease is shortened
# by what they may have drifted apart since (0.3 s by then).
COMPARE_CLOCKS = 300.0
# Seconds that a stream may take to begin. Their clock was read at some moment of these: leases are shorter by as
# much.
SLOW = 0.3
_LONGEST_PAUSE = 5.0


class _Waiting(NamedTuple):
    """Those who wait to hear of one token, and until when (the event loop's time) the first of them does."""

    due: float
    answers: "list[asyncio.Future[SignedIn | None]]"


class Verifier:
    """Checks session tokens with the token of a service (`gatepost service add NAME`).

    ``mode``:

    - ``"strict"``: each check asks Gatepost. Checks that arrive while a call is under way share the next one. What
      was revoked before a check began is refused, without exception.
    - ``"leased"``: answers are kept in memory and dropped when Gatepost's feed tells of a revocation: milliseconds
      after it, and after one second at most, whatever happens to the feed. Without a lease, it is strict.

    ``timeout``: seconds after which a check is not known. ``most``: answers kept at most. Use it with ``async with``,
    or call `start` and `close`.
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
        if mode not in ("strict", "leased"):
            raise ValueError(f"mode is {mode!r}: it must be 'strict' or 'leased'")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._mode = mode
        self._timeout = timeout
        self._lease = Lease(most)
        self._http: aiohttp.ClientSession | None = None
        self._follower: asyncio.Task[None] | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self.calls = 0
        """Calls of `/authz/check` so far."""
        self._complaint: str | None = None

    async def start(self) -> None:
        """Begin. A Gatepost that is away is no error: until it comes, checks are not known."""
        self._http = aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=self._timeout))
        if self._mode == "leased":
            self._follower = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """End; checks that wait are not known."""
        tasks = [*self._calls, *([self._follower] if self._follower else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._waiting:
            _settle(self._waiting.popitem()[1], NotKnown("the verifier was closed"))
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def __aenter__(self) -> Self:
        """`start`."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """`close`."""
        await self.close()

    @property
    def has_lease(self) -> bool:
        """Whether answers from memory count now."""
        return clock() < self._lease.until

    def peek(self, token: str) -> SignedIn | None:
        """The answer from memory, if there is one that counts: no call and no waiting. None says nothing."""
        return self._lease.get(token, clock())

    async def check(self, token: str | None) -> SignedIn | None:
        """Whose session this is; None for no session. Raises NotKnown."""
        if token is None:
            return None
        entry = self._lease.entries.get(token)
        if entry is not None and self._lease.until > clock() < entry.until:  # `Lease.get`, inlined
            return entry.signed_in
        if not is_token(token):
            return None
        if self._http is None:
            raise NotKnown("the verifier was not started")
        return await self._look_up(token)

    # ----------------------------------------------------------------------------------------- look-ups

    async def _look_up(self, token: str) -> SignedIn | None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[SignedIn | None] = loop.create_future()
        waiting = self._waiting.get(token)
        if waiting is None:
            waiting = self._waiting[token] = _Waiting(loop.time() + self._timeout, [])
        waiting.answers.append(answer)
        if len(self._calls) < CALLS:
            call = asyncio.create_task(self._work())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            batch = {token: self._waiting.pop(token) for token in list(islice(self._waiting, MAX_BATCH))}
            due = next(iter(batch.values())).due  # of the one that has waited longest
            failure = NotKnown("the verifier was closed")
            found: Mapping[str, SignedIn | None] = {}
            try:
                async with asyncio.timeout_at(due):
                    found = await self._ask(list(batch))
            except NotKnown as error:
                failure = error
            except TimeoutError:
                failure = self._not_known(f"Gatepost did not answer within {self._timeout:g} s")
            finally:
                for token, waiting in batch.items():
                    _settle(waiting, found.get(token, failure))

    async def _ask(self, tokens: list[str]) -> Mapping[str, SignedIn | None]:
        asking, found = self._lease.begin(), dict[str, SignedIn | None]()
        try:
            results = await self._post(tokens)
            found = {
                token: None if one is None else SignedIn.of(one) for token, one in zip(tokens, results, strict=True)
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._not_known(f"{self._url} does not answer as a Gatepost does") from error
        finally:
            self._lease.end(asking, found if self._mode == "leased" else {}, clock())
        return found

    async def _post(self, tokens: list[str]) -> list[Any]:
        assert self._http is not None
        for again in (True, False):
            self.calls += 1
            try:
                async with self._http.post(f"{self._url}/authz/check", json={"tokens": tokens}) as answer:
                    if answer.status != 200:
                        raise self._not_known(_reason(answer.status))
                    self._complaint = None
                    results: list[Any] = (await answer.json())["results"]
                    return results
            except aiohttp.ServerDisconnectedError as error:
                if not again:  # the first was an idle connection; asking twice does no harm
                    raise self._not_known("Gatepost closed the connection") from error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._not_known(f"Gatepost cannot be reached ({type(error).__name__})") from error
        raise AssertionError

    def _not_known(self, reason: str) -> NotKnown:
        if reason != self._complaint:  # once, not for every request
            self._complaint = reason
            log.warning("sessions cannot be checked: %s", reason)
        return NotKnown(reason)

    # ------------------------------------------------------------------------------------------ the feed

    async def _follow(self) -> None:
        pause, last = 0.0, ""
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 (spreads, hides nothing)
            pause = min(max(2 * pause, 0.1), _LONGEST_PAUSE)
            began = clock()
            try:
                async with contextlib.aclosing(self._events(last, began)) as events:
                    async for kind, event_id in events:
                        last = event_id or last
                        if kind == "hello" and clock() - began > SLOW:
                            break
                        if kind == "heartbeat":
                            pause = 0.0
                            if clock() - began > COMPARE_CLOCKS:
                                break
            except (aiohttp.ClientError, TimeoutError, OSError, NotKnown):
                pass
            except Exception:
                log.exception("the feed cannot be read")
            finally:
                self._lease.lose()

    async def _events(self, last: str, began: float) -> AsyncGenerator[tuple[str, str | None], None]:
        assert self._http is not None
        headers = {"Last-Event-ID": last} if last else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        async with self._http.get(f"{self._url}/feed", headers=headers, timeout=timeout) as answer:
            if answer.status != 200:
                raise self._not_known(_reason(answer.status))
            fields: dict[str, str] = {}
            async for line in answer.content:
                text = line.decode().rstrip("\r\n")
                if text:
                    name, _, value = text.partition(":")
                    fields[name] = value.removeprefix(" ")
                    continue
                if "event" in fields:
                    data = json.loads(fields.get("data", "{}"))
                    self._apply(fields["event"], data, began)
                    yield fields["event"], fields.get("id")
                fields = {}

    def _apply(self, kind: str, data: Mapping[str, Any], began: float) -> None:
        lease = self._lease
        if kind == "heartbeat":
            lease.prove(float(data["proven"]), clock())
        elif kind == "hello":
            lease.hello(data, began)
        elif kind == "session.revoked":
            lease.drop(data["sub_id"]["session"]["id"])
        elif kind == "user.changed":
            lease.drop(data["sub_id"]["user"]["id"])
        else:  # `reset`, and whatever a later Gatepost may tell
            lease.drop_all()


def _settle(waiting: _Waiting, what: SignedIn | NotKnown | None) -> None:
    for answer in waiting.answers:
        if answer.done():  # its own caller was cancelled
            continue
        if isinstance(what, NotKnown):
            answer.set_exception(what)
        else:
            answer.set_result(what)


def _reason(status: int) -> str:
    if status in (401, 403):
        return f"Gatepost refuses the service's token ({status}): see `gatepost service list`"
    if status == 404:
        return "this Gatepost is too old (404)"
    return f"Gatepost answers {status}"
