"""The sender: takes what is due from the outbox, makes the codes, and sends it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from gatepost.config import Config
from gatepost.errors import DatabaseUnavailable, TooManyAttempts
from gatepost.mail import codes
from gatepost.mail.codes import Code
from gatepost.mail.outbox import queries
from gatepost.mail.outbox.message import Composer, Envelope
from gatepost.mail.outbox.queries import Mail, Recipient
from gatepost.mail.outbox.templating import Templates
from gatepost.mail.outbox.transports import Away, Connection, Refused, transport
from gatepost.postgres.database import Database
from gatepost.process.jitter import jitter
from gatepost.security.throttle import Throttle
from gatepost.telemetry.logs import log

# Seconds between two looks at the outbox, where nothing says that there is something.
POLL = 2.0
# Seconds for which a process goes on with what it has taken. A mail is its own for as long, and for the five answers
# that a server gives to one mail.
ROUND, STEPS = 60.0, 5
# Seconds for a mail that is on its way when the process ends.
ENDING = 5.0
# Mails taken at once.
MOST = 100
# Seconds until the next try: of a mail that was refused, and of a server that is away. Doubled each time.
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 1800.0
FIRST_ABSENCE, LONGEST_ABSENCE = 1.0, 60.0
# Seconds after which a mail is given up.
PATIENCE = 86400.0

CODE_LIFETIME, LONG_LIFETIME = 3600, 7 * 86400
# What the codes of the other mails are for, and for how many seconds. One that lasts longer than an hour is never a
# short one to type: in days, it could be guessed.
_PURPOSES = {
    "verify_email": ("verify_email", CODE_LIFETIME),
    "invitation": ("recovery", LONG_LIFETIME),
    "email_changed": ("undo_email", LONG_LIFETIME),
}
_LONG = {kind for kind, (_, lifetime) in _PURPOSES.items() if lifetime > CODE_LIFETIME}


class Sender:
    """One in each process. ``sent``, ``refused``, ``given_up``, ``held_back``: how many mails, for the metrics."""

    def __init__(self, config: Config, database: Database, throttle: Throttle) -> None:
        """Raises ConfigError."""
        self._config = config.mail
        self._own_pages = config.webserver.public_url if config.pages.enabled else None
        self._database = database
        self._throttle = throttle
        self._templates = Templates(config.mail)
        self._composer = Composer(config.mail)
        self._transport = transport(config.mail)
        self._wake = asyncio.Event()
        self._stopping = False
        self._absence = self._away_until = 0.0
        self._accepted: set[str] = set()
        """Mails that the server has accepted and that are still in the outbox, since the database was away."""
        self.sent = self.refused = self.given_up = self.held_back = 0
        self.waiting, self.oldest = 0, 0.0

    def wake(self) -> None:
        """There is something in the outbox."""
        self._wake.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send as long as the block lasts. At its end a mail that is on its way has a few seconds: broken off, it
        might be sent twice.
        """
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._stopping = True
            self._wake.set()
            await asyncio.wait([task], timeout=ENDING)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def look(self) -> None:
        """How many mails wait, and since when. Raises DatabaseUnavailable."""
        self.waiting, self.oldest = await self._database.read(queries.state)

    async def _run(self) -> None:
        while not self._stopping:
            pause = jitter(self._absence or POLL, 0.9, 1.1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
            self._wake.clear()
            try:
                while await self.send_due() == MOST and not self._stopping:
                    pass
            except DatabaseUnavailable:
                pass  # every request says so
            except Exception:  # noqa: BLE001 (or no mail would ever leave again)
                log.exception("sending mail failed")

    async def send_due(self) -> int:
        """Send what is due, once; how many mails that were. Raises DatabaseUnavailable."""
        if self._accepted:
            await self._finish(list(self._accepted))
        if self._stopping or time.monotonic() < self._away_until:
            return 0
        until = time.monotonic() + ROUND
        lease = ROUND + STEPS * self._config.timeout
        due = await self._database.write(queries.take_due, most=MOST, lease=lease)
        if not due:
            return 0
        mails, failed, sent = iter(due), list[tuple[Mail, str]](), self.sent
        lanes = [self._lane(mails, failed, until) for _ in range(min(self._config.connections, len(due)))]
        problems = [found for found in await asyncio.gather(*lanes, return_exceptions=True) if found]
        is_away = bool(failed) and self.sent == sent
        if not is_away:  # others were accepted, so it was these that the server broke off at
            for mail, reason in failed:
                await self._refused(mail, reason)
            failed = []
        await self._leave([mail for mail, _ in failed] + list(mails), failed[0][1] if failed else "")
        for problem in problems:
            raise problem
        if is_away:
            self._server_is_away(failed[0][1])
            return 0
        if self._absence:
            log.info("the mail server takes mail again")
        self._absence = 0.0
        return len(due)

    def _server_is_away(self, reason: str) -> None:
        if not self._absence:
            log.warning("the mail server takes no mail", reason=reason)
        self._absence = min(LONGEST_ABSENCE, 2 * self._absence or FIRST_ABSENCE)
        # Until then a new mail is no reason to ask again.
        self._away_until = time.monotonic() + self._absence * 0.9

    async def _leave(self, left: list[Mail], reason: str) -> None:
        """Mails that have not been tried are due again at once."""
        over = [mail for mail in left if reason and self._is_over(mail)]
        for mail in over:
            await self._give_up(mail, reason)
        ids = [mail.id for mail in left if mail not in over]
        if ids:
            await self._database.write(queries.put_off, ids, 0.0, reason, tried=False)

    async def _lane(self, mails: Iterator[Mail], failed: list[tuple[Mail, str]], until: float) -> None:
        """Send one mail after the other over one connection, or until it breaks off. Raises DatabaseUnavailable."""
        async with contextlib.AsyncExitStack() as stack:
            connection: Connection | None = None
            while not self._stopping and time.monotonic() < until and (mail := next(mails, None)):
                try:
                    if connection is None:
                        connection = await stack.enter_async_context(self._transport.open())
                    await self._send(mail, connection)
                except Away as error:
                    failed.append((mail, str(error)))
                    return
                except DatabaseUnavailable:
                    raise  # the mail is due again when its lease is over
                except Exception as error:  # noqa: BLE001 (one mail must not hold up all others)
                    log.exception("a mail cannot be made", mail=mail.kind, mail_id=mail.id)
                    await self._refused(mail, f"it cannot be made: {type(error).__name__}")

    async def _send(self, mail: Mail, connection: Connection) -> None:
        to, code = await self._prepare(mail)
        if to is None:
            await self._finish([mail.id])
            return
        link = None
        values: dict[str, Any] = {"username": to.username, **mail.detail}
        if code is not None:
            values["code"] = code.link if mail.kind in _LONG else code.typed
            link = self._link(mail, code)
        content = self._templates.render(mail.kind, mail.language, values, link)
        envelope = Envelope(to.address, mail.id, mail.created_at, mail.language)
        message = self._composer.compose(content, envelope)
        try:
            await connection.send(message, to.address, mail.id)
        except Refused as error:
            await self._refused(mail, str(error))
            return
        self.sent += 1
        self._accepted.add(mail.id)
        await self._finish([mail.id])

    async def _prepare(self, mail: Mail) -> tuple[Recipient | None, Code | None]:
        """Who a mail goes to, and the code in it; nobody for a mail that is not to be sent."""
        database, recipient = self._database, mail.recipient
        if mail.kind == "recovery":
            name, address = mail.detail["name"], mail.detail["address"]
            # Also for a user who is not found: most of the work, which could be noticed, is done for both.
            code = await asyncio.to_thread(codes.new, "recovery", address or name)
            found = await database.read(queries.find_recovered, name, address)
            if found is None:
                return None, None
            recipient, canonical = found
            bucket = self._throttle.for_recovery_mail(canonical)
            try:
                await database.write(queries.keep_recovery, mail, recipient, code, bucket, lifetime=CODE_LIFETIME)
            except TooManyAttempts:
                self.held_back += 1
                return None, None
            return recipient, code
        if recipient is None or mail.kind not in _PURPOSES:
            return recipient, None
        purpose, lifetime = _PURPOSES[mail.kind]
        code = await asyncio.to_thread(codes.new, purpose, str(recipient.email_id))
        since = mail.detail.get("since")
        typed = mail.kind not in _LONG
        await database.write(queries.keep_code, purpose, recipient, code, lifetime=lifetime, since=since, typed=typed)
        return recipient, code

    def _link(self, mail: Mail, code: Code) -> str | None:
        """The page, with the code behind the #: that part reaches neither a server nor its logs."""
        purpose, _ = _PURPOSES.get(mail.kind, (mail.kind, 0))
        which = f"&email={mail.email_id}" if mail.kind == "verify_email" else ""
        page = self._config.page or self._own_page(purpose, mail)
        return page and f"{page}#{purpose}={code.link}{which}"

    def _own_page(self, purpose: str, mail: Mail) -> str | None:
        """That of `pages/` which takes the code."""
        if self._own_pages is None:
            return None
        verify = f"/me/emails/{mail.email_id}/verify"
        return self._own_pages + {"verify_email": verify, "undo_email": "/undo"}.get(purpose, "/recover/code")

    def _is_over(self, mail: Mail) -> bool:
        return time.time() - mail.created_at.timestamp() > PATIENCE

    async def _refused(self, mail: Mail, reason: str) -> None:
        self.refused += 1
        if self._is_over(mail):
            await self._give_up(mail, reason)
            return
        log.warning("a mail is refused, and tried again later", mail=mail.kind, mail_id=mail.id, reason=reason)
        pause = jitter(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(mail.tries - 1, 20)), 0.9, 1.1)
        await self._database.write(queries.put_off, [mail.id], pause, reason, tried=True)

    async def _give_up(self, mail: Mail, reason: str) -> None:
        await self._database.write(queries.give_up, mail.id, reason)
        self.given_up += 1
        log.error("a mail is given up", mail=mail.kind, mail_id=mail.id, reason=reason)

    async def _finish(self, ids: list[str]) -> None:
        await self._database.write(queries.done, ids)
        self._accepted.difference_update(ids)
