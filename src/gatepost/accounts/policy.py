"""What a name and a password must be to be accepted."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.resources import files
from typing import ParamSpec, TypeVar

from gatepost.config import Config, PasswordsConfig
from gatepost.errors import FieldError, InvalidBody, Overloaded
from gatepost.mail.mailer import parse_field
from gatepost.security import email
from gatepost.security.credentials import SPREAD, InvalidPassword, prepare
from gatepost.security.names import InvalidName, canonical, display

P = ParamSpec("P")
T = TypeVar("T")


class _Judging:
    """A thread that judges, and the number of calls that wait for it.

    One thread: preparing a long password takes milliseconds, and several threads would delay the event loop.
    """

    # With the most expensive texts (14 ms each) a second.
    MOST = 64

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "judging")
        self._waiting = 0

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns. Raises what it raises, and Overloaded when too many calls wait."""
        if self._waiting >= self.MOST:
            raise Overloaded(1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= 1


_judging = _Judging()


async def off_the_loop(judge: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``judge`` returns, off the event loop. Raises what it raises, and Overloaded."""
    return await _judging.run(partial(judge, *args, **kwargs))


def judge(username: str, password: str, config: PasswordsConfig) -> tuple[str, str]:
    """The name's display and canonical form, if both name and password will do.

    The rules are NIST SP 800-63B-4 §3.1.1: a length, a blocklist, no composition rules, no truncation. Raises
    InvalidBody with every reason, by field.
    """
    errors: list[FieldError] = []
    shown = compared = ""
    try:
        shown, compared = judge_username(username)
    except InvalidBody as error:
        errors.extend(error.fields)
    errors.extend(_password_errors("password", password, compared, config))
    if errors:
        raise InvalidBody(errors)
    return shown, compared


def judge_username(username: str) -> tuple[str, str]:
    """The name's display and canonical form. Raises InvalidBody."""
    try:
        return display(username), canonical(username)
    except InvalidName as error:
        raise InvalidBody([FieldError("username", "invalid_username", str(error))]) from None


def judge_email(text: str | None, config: Config) -> email.Address | None:
    """The address that somebody registers with. Raises InvalidBody, also for one where users have none."""
    if text is None:
        if config.accounts.email == "required":
            raise InvalidBody([FieldError("email", "required", "is required")])
        return None
    if not config.has_addresses:
        raise InvalidBody([FieldError("email", "unknown_field", "is not known here")])
    return parse_field("email", text)


def refuse_address_as_name(username: str, config: Config, before: str | None = None) -> None:
    """Raise InvalidBody for a new name with an @ where users sign in with addresses too: it could be somebody's.

    ``before``: the canonical name that the user has; that may stay.
    """
    if config.has_addresses and "@" in username and canonical(username) != before:
        message = "must not contain @: give an address as email"
        raise InvalidBody([FieldError("username", "invalid_username", message)])


def judge_password(field: str, password: str, name: str, config: PasswordsConfig) -> None:
    """Accept a password for the user of this canonical name, or raise InvalidBody naming ``field``."""
    if errors := _password_errors(field, password, name, config):
        raise InvalidBody(errors)


def _password_errors(field: str, password: str, name: str, config: PasswordsConfig) -> list[FieldError]:
    def error(code: str, message: str) -> list[FieldError]:
        return [FieldError(field, code, message)]

    too_long = error("password_too_long", f"must have at most {config.max_length} characters")
    # The length of the raw text is checked first: preparing takes time for each character.
    if len(password) > SPREAD * config.max_length:
        return too_long
    try:
        text = prepare(password).decode()
    except InvalidPassword as refused:
        return error("invalid_password", str(refused))
    # A character is a code point of the prepared text, as NIST counts.
    if len(text) > config.max_length:
        return too_long
    if len(text) < config.min_length:
        return error("password_too_short", f"must have at least {config.min_length} characters")
    if text.casefold() in _common_passwords(config.min_length):
        return error("password_too_common", "is one of the most common passwords")
    if name and _is_made_of(text.casefold(), name):
        return error("password_is_username", "is made of the username")
    return []


def _is_made_of(text: str, name: str) -> bool:
    """Whether the text consists of the name, digits and punctuation only."""
    name = name.casefold()
    rest = text.replace(name, "").replace(name[::-1], "")
    return rest != text and not any(character.isalpha() for character in rest)


@cache
def _common_passwords(min_length: int) -> frozenset[str]:
    """The common passwords of at least ``min_length`` characters (31 of 30,000 for 15): a shorter one was refused
    before.

    They are compared case-folded, which makes no text shorter.
    """
    with (files("gatepost.accounts") / "common-passwords.txt").open(encoding="utf-8") as lines:
        return frozenset(line for line in map(str.rstrip, lines) if len(line) >= min_length)
