"""What a handler takes and returns, declared beside it with its own types. The OpenAPI document is made from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from gatepost.errors import Problem

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Operation:
    """``answer``: the TypedDict of a good answer, None for an empty body. ``problems``: those this handler raises
    by itself; what reading a body, a token or the database can raise is known without being said. ``event``: the kind
    of event that a good answer has recorded. ``check``: asked so often that a line for each would drown all others.
    ``redirect``: where and when it leads elsewhere (303).
    """

    answer: type[Any] | None
    status: int = 200
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    problems: tuple[type[Problem], ...] = ()
    any_content_type: bool = False
    media_type: str = "application/json"
    event: str | None = None
    check: bool = False
    redirect: str | None = None


def operation(  # noqa: PLR0913 (the fields of a note, by name)
    answer: type[Any] | None,
    *,
    status: int = 200,
    body: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
    problems: tuple[type[Problem], ...] = (),
    any_content_type: bool = False,
    media_type: str = "application/json",
    event: str | None = None,
    check: bool = False,
    redirect: str | None = None,
) -> Callable[[HandlerT], HandlerT]:
    """Note an `Operation` on a handler; its docstring is the summary."""

    def note(handler: HandlerT) -> HandlerT:
        noted = Operation(answer, status, body, query, problems, any_content_type, media_type, event, check, redirect)
        handler.__operation__ = noted  # type: ignore[attr-defined]
        return handler

    return note
