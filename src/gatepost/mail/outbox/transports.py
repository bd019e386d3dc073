"""The ways by which mail leaves: an SMTP server, or a folder."""

import asyncio
import contextlib
import os
import re
import ssl
import time
from collections.abc import AsyncIterator
from email.utils import parseaddr
from pathlib import Path
from typing import Protocol

import aiosmtplib

from gatepost.config import ConfigError, MailConfig


class Refused(Exception):
    """The server does not take this mail now; the message says why. Others may still be taken."""


class Away(Exception):
    """The server takes no mail at all now; the message says why."""


class Transport(Protocol):
    """A way for mail to leave. `open` gives a connection, over which one mail is sent after the other."""

    def open(self) -> contextlib.AbstractAsyncContextManager["Connection"]:
        """Raises Away."""
        ...


class Connection(Protocol):
    """An open way."""

    async def send(self, message: bytes, to: str, mail_id: str) -> None:
        """Send a mail; when this returns, it has been accepted. Raises Refused, Away."""
        ...


def transport(config: MailConfig) -> Transport:
    """That of the configuration. Raises ConfigError."""
    if config.directory is not None:
        return Folder(config.directory)
    return SmtpServer(config)


# ------------------------------------------------------------------------------------------------- folder


class Folder:
    """A folder in which each mail is a file ``.eml``, which mail programs open. Readable by its owner alone."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError when there can be no such folder."""
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"mail.directory: {folder}: {error.strerror}") from None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Folder"]:
        """The folder itself."""
        yield self

    async def send(self, message: bytes, to: str, mail_id: str) -> None:
        """Write it under a name that sorts by time. Raises Away."""
        name = f"{time.time_ns():020}-{re.sub('[^A-Za-z0-9.@_-]', '_', to)}.eml"
        try:
            await asyncio.to_thread(self._write, name, mail_id, message)
        except OSError as error:
            raise Away(f"{self._folder}: {error.strerror}") from None

    def _write(self, name: str, mail_id: str, message: bytes) -> None:
        unfinished = self._folder / f".{mail_id}"
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(message)
        unfinished.rename(self._folder / name)


# --------------------------------------------------------------------------------------------------- SMTP


class SmtpServer:
    """An SMTP server. Its certificate is checked, unless ``security`` is `none`."""

    def __init__(self, config: MailConfig) -> None:
        """Raises ConfigError for certificates that cannot be read."""
        self._config = config
        self._sender = parseaddr(config.from_address)[1]
        self._tls: ssl.SSLContext | None = None
        if config.security != "none":
            try:
                self._tls = ssl.create_default_context(cafile=config.tls_ca)
            except OSError as error:
                raise ConfigError(f"mail.tls_ca: {config.tls_ca}: {error.strerror or error}") from None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["_SmtpConnection"]:
        """A connection, signed in. Raises Away."""
        config = self._config
        client = aiosmtplib.SMTP(
            hostname=config.host,
            port=config.port,
            username=config.user,
            password=config.password.get_secret_value() if config.password else None,
            timeout=config.timeout,
            use_tls=config.security == "tls",
            start_tls=config.security == "starttls",
            tls_context=self._tls,
        )
        try:
            await client.connect()
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            client.close()
            raise Away(f"{config.host}: {_reason(error)}") from None
        try:
            yield _SmtpConnection(client, self._sender, f"{config.host}")
        finally:
            with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=1)
            client.close()


class _SmtpConnection:
    def __init__(self, client: aiosmtplib.SMTP, sender: str, host: str) -> None:
        self._client, self._sender, self._host = client, sender, host

    async def send(self, message: bytes, to: str, mail_id: str) -> None:  # noqa: ARG002 (the folder needs it)
        try:
            await self._client.sendmail(self._sender, [to], message)
        except (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError, OSError) as error:
            raise Away(f"{self._host}: {_reason(error)}") from None
        except aiosmtplib.SMTPResponseException as error:
            if error.code == 421:  # RFC 5321 §3.8: the server is about to close the connection
                raise Away(f"{self._host}: {_reason(error)}") from None
            raise Refused(_reason(error)) from None
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise Refused(_reason(error.recipients[0])) from None
        except aiosmtplib.SMTPException as error:
            raise Refused(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """In one line, for log and event: cut, printable, and without the address, which servers like to repeat."""
    text = f"{error.code} {error.message}" if isinstance(error, aiosmtplib.SMTPResponseException) else str(error)
    line = " ".join(re.sub(r"\S+@\S+", "…", text or type(error).__name__).split())
    if line.endswith(":"):
        line += f" {type(error.__cause__ or error).__name__}"
    return "".join(c if c.isprintable() else "?" for c in line)[:300]
