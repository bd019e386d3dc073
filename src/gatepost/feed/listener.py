"""What Postgres notifies of, and the proof that nothing is missing.

Postgres delivers notifications in the order of their commits. So a notification of our own, when it comes back,
proves that every revocation that was committed before it was sent has come as well. Without it, nothing is known.
"""

import asyncio
import json
import secrets
from typing import Any, NoReturn

from gatepost.errors import DatabaseUnavailable
from gatepost.feed.feed import HEARTBEAT, LEASE, Feed, Notice, clock
from gatepost.postgres.connection import ANSWER_TIMEOUT, TRY_AGAIN, Dsn
from gatepost.postgres.notifications import Notifications, listen
from gatepost.process.jitter import jitter
from gatepost.telemetry.logs import log

CHANNEL = "gatepost_feed"


class Listener:
    """Fills a feed over a connection of its own, from the first listener on until `close`."""

    def __init__(self, dsn: Dsn, feed: Feed) -> None:
        self._dsn = dsn
        self._feed = feed
        self._task: asyncio.Task[NoReturn] | None = None
        self._echo = f"gatepost_echo_{secrets.token_hex(8)}"

    async def start(self) -> None:
        """Listen, if nobody has asked for it before. Raises DatabaseUnavailable unless the feed is live in time."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                while not self._feed.is_live:
                    await self._feed.changed()
        except TimeoutError:
            raise DatabaseUnavailable("no notification of our own comes back from Postgres") from None

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> NoReturn:
        told = ""
        while True:
            try:
                async with listen(self._dsn, CHANNEL, self._echo) as notifications:
                    told = ""
                    self._feed.publish(Notice())  # what was revoked before is unknown
                    await self._follow(notifications)
            except DatabaseUnavailable as error:
                if str(error) != told:  # once, not with every attempt
                    told = str(error)
                    log.warning("the feed has lost Postgres", reason=told)
            except Exception:  # noqa: BLE001 (or there would be no feed until the next start)
                log.exception("the feed has failed")
            await asyncio.sleep(jitter(TRY_AGAIN, 0.5, 1.5))

    async def _follow(self, notifications: Notifications) -> None:
        receiving = asyncio.create_task(self._receive(notifications))
        try:
            began = clock()
            while not receiving.done():
                now = clock()
                self._feed.ahead = await notifications.notify(self._echo, repr(now), LEASE) - now
                await asyncio.wait([receiving], timeout=HEARTBEAT)
                if clock() - max(self._feed.proven, began) > LEASE:
                    raise DatabaseUnavailable("no notification of our own comes back")
            receiving.result()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _receive(self, notifications: Notifications) -> NoReturn:
        while True:
            channel, payload = await notifications.next()
            if channel == self._echo:
                self._feed.prove(float(payload))
            else:
                for notice in _notices(payload):
                    self._feed.publish(notice)


def _notices(payload: str) -> list[Notice]:
    """The notices of a notification. Any role may notify, so one that is not understood means that anything may have
    changed.
    """
    try:
        told: dict[str, Any] = json.loads(payload)
        notices = [Notice(session=str(handle), user=str(user)) for handle, user in told.pop("sessions", ())]
        notices += [Notice(user=str(user)) for user in told.pop("users", ())]
        notices += [Notice(service=str(name)) for name in told.pop("services", ())]
    except (ValueError, TypeError, AttributeError):
        return [Notice()]
    return [Notice()] if told or not notices else notices
