"""Errors that do not come from the handler itself, for the OpenAPI document."""

import inspect
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict

from gatepost.errors import (
    BadRequest,
    BodyTooLarge,
    FieldError,
    InvalidBody,
    Problem,
    RequestTimeout,
    Unauthorized,
    UnsupportedMediaType,
)


class ProblemDocument(TypedDict):
    """What went wrong (RFC 9457): ``code`` is for programs, ``detail`` for people.

    With ``second_factor_required``, ``login`` is the ticket for the next step, ``methods`` what that takes.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: NotRequired[list[FieldError]]
    login: NotRequired[str]
    methods: NotRequired[list[str]]
    expires_at: NotRequired[str]


def prose(thing: object) -> str:
    """What its docstring says, as Markdown."""
    return markdown(inspect.getdoc(thing) or "")


def markdown(docstring: str) -> str:
    """Paragraphs of one line each, code as Markdown has it."""
    paragraphs = docstring.replace("``", "`").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


class Refusal(NamedTuple):
    """One code that an answer can have, and the headers that come with it."""

    status: int
    code: str
    text: str
    headers: tuple[str, ...] = ()

    @classmethod
    def of(cls, problem: type[Problem]) -> "Refusal":
        """That of a problem with a class of its own."""
        return cls(problem.status, problem.code, prose(problem), tuple(problem.headers))


QUERY = (
    Refusal(400, "nul_character", "A string contains U+0000."),
    Refusal(400, "lone_surrogate", "A string contains a lone surrogate."),
    Refusal.of(InvalidBody),
)
BODY = (
    Refusal(400, "body_incomplete", "The body broke off."),
    Refusal(400, "body_not_utf8", "The body is not UTF-8."),
    Refusal(400, "body_not_json", "The body is not JSON."),
    Refusal(400, "body_too_deep", "The body is nested too deep."),
    Refusal(400, "duplicate_key", "A key occurs twice in one object."),
    Refusal(400, "number_not_finite", "A number is not finite."),
    Refusal(400, "number_too_long", "A number has too many characters."),
    *QUERY,
    Refusal.of(RequestTimeout),
    Refusal.of(BodyTooLarge),
    Refusal.of(UnsupportedMediaType),
)
TOKEN = (
    Refusal(400, "two_authorizations", "There are two Authorization headers."),
    Refusal.of(Unauthorized),
)
# Possible for every operation: a malformed request, and a fault on our side.
ANYWHERE = (Refusal.of(BadRequest), Refusal.of(Problem))
