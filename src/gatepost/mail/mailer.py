"""What handlers need of the mail: whether there is any, in which language, and to wake the sender."""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Self

from aiohttp import hdrs, web

from gatepost.config import Config
from gatepost.config.mail import LANGUAGES
from gatepost.errors import FieldError, InvalidBody, NotFound
from gatepost.security import email

if TYPE_CHECKING:
    from gatepost.mail.outbox.sender import Sender


class Mailer:
    """``sender`` is None where users have no addresses."""

    def __init__(self, config: Config, sender: "Sender | None") -> None:
        self._default: str = config.mail.language
        self._sender = sender

    @classmethod
    def demand(cls, request: web.Request) -> Self:
        """That of this server. Raises NotFound where users have no addresses."""
        mailer = request.app[MAILER]
        if mailer._sender is None:  # noqa: SLF001 (its own)
            raise NotFound
        return mailer  # type: ignore[return-value]

    def notices(self, request: web.Request) -> str | None:
        """The language of notices that this request causes; None where no mail is sent."""
        return None if self._sender is None else self.language(request)

    def language(self, request: web.Request) -> str:
        """The language of mail that this request causes."""
        return preferred(request.headers.get(hdrs.ACCEPT_LANGUAGE, "")[:256], self._default)

    @property
    def backlog(self) -> tuple[int, float]:
        """How many mails wait in the outbox, and since how many seconds the oldest does."""
        return (self._sender.waiting, self._sender.oldest) if self._sender else (0, 0.0)

    def wake(self) -> None:
        """There is something in the outbox."""
        if self._sender is not None:
            self._sender.wake()


MAILER = web.AppKey("mailer", Mailer)


def parse_field(field: str, text: str) -> email.Address:
    """The address in a field of a body. Raises InvalidBody."""
    try:
        return email.parse(text)
    except email.InvalidAddress as error:
        raise InvalidBody([FieldError(field, "invalid_email", str(error))]) from None


def preferred(accepted: str, default: str, languages: Collection[str] = LANGUAGES) -> str:
    """The one of ``languages`` that an Accept-Language asks for most (RFC 9110 §12.5.4); without one, the default."""
    wanted: list[tuple[float, str]] = []
    for item in accepted.split(","):
        match = re.fullmatch(r"\s*([A-Za-z]{2,3})(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q=([01](?:\.[0-9]{0,3})?))?\s*", item)
        if match and match[1].lower() in languages:
            wanted.append((float(match[2] or 1), match[1].lower()))
    best = max(wanted, key=lambda found: found[0], default=(0.0, default))
    return best[1] if best[0] > 0 else default
