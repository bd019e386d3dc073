"""Where the tests receive mail: the folder of `mail.directory`, or an SMTP server."""

import asyncio
import re
from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

from gatepost.mail import codes

_TYPED = re.compile(r"^[0-9A-Z]{4}-[0-9A-Z]{4}$", re.MULTILINE)


class Received:
    """A mail that has arrived."""

    def __init__(self, content: bytes, recipients: list[str] | None = None) -> None:
        message = message_from_bytes(content, policy=default)
        assert isinstance(message, EmailMessage)
        self.message = message
        self.content = content
        self.recipients = recipients or [str(message["To"])]
        text, html = message.get_body(("plain",)), message.get_body(("html",))
        assert text is not None
        assert html is not None
        self.text: str = text.get_content().replace("\r\n", "\n")
        self.html: str = html.get_content().replace("\r\n", "\n")

    @property
    def subject(self) -> str:
        return str(self.message["Subject"])

    @property
    def typed(self) -> str:
        """The code to type."""
        match = _TYPED.search(self.text)
        assert match, self.text
        assert codes.as_typed(match[0])
        return match[0]

    def link(self, purpose: str) -> str:
        """The code in the link, or in a line of its own where there is no page."""
        match = re.search(rf"#{purpose}=([0-9a-f]{{32}})|^([0-9a-f]{{32}})$", self.text, re.MULTILINE)
        assert match, self.text
        return match[1] or match[2]


class Folder:
    """A folder of `.eml` files, read in the order in which they were written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: set[Path] = set()

    def _new(self) -> Iterator[Received]:
        for file in sorted(self.path.glob("*.eml")):
            if file not in self._read:
                self._read.add(file)
                yield Received(file.read_bytes())

    async def receive(self, to: str, *, kind: str = "", seconds: float = 60.0) -> Received:
        """The next mail to this address that has ``kind`` in its subject; those before it are passed over."""
        async with asyncio.timeout(seconds):
            while True:
                for mail in self._new():
                    if mail.recipients == [to] and kind in mail.subject:
                        return mail
                await asyncio.sleep(0.02)

    def rest(self) -> list[Received]:
        """All that nobody has received yet."""
        return list(self._new())
