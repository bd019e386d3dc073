"""Forms: reading one, and doing what it asks for by the handler that answers programs too."""

import json
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from gatepost.errors import BadRequest, BodyTooLarge, UnsupportedMediaType
from gatepost.http import strict_json
from gatepost.http.app import Handler
from gatepost.http.body import GIVEN, MAX_BODY, media_type, read_bytes

# Two passwords of 1,024 characters, of which each may take twelve bytes.
MAX_FORM = 4 * MAX_BODY
MAX_FIELDS = 32

Form = dict[str, str]


async def read_form(request: web.Request) -> Form:
    """The fields of a form, each with its text.

    Raises UnsupportedMediaType, BadRequest, BodyTooLarge.
    """
    if media_type(request) != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("Send the form as a browser does.")
    return fields_of(await read_bytes(request, MAX_FORM))


def fields_of(body: bytes) -> Form:
    """The fields of a form that was sent so. Raises BadRequest."""
    try:
        fields = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict", encoding="utf-8"
        )
    except ValueError:
        raise BadRequest("This form cannot be read.", code="form_unreadable") from None
    form = dict(fields)
    if len(form) < len(fields):
        raise BadRequest("A field of this form is given twice.", code="form_unreadable")
    strict_json.refuse_bad_characters(form)
    return form


def credential(text: str) -> dict[str, Any]:
    """What the browser's script has written into a field. An empty object for no object, which is refused.

    Raises BadRequest for what is no JSON, and BodyTooLarge for more of it than the API takes.
    """
    if len(text) > MAX_BODY:
        raise BodyTooLarge
    value = strict_json.decode(text.encode())
    return value if isinstance(value, dict) else {}


def proof(form: Form, prefix: str = "") -> dict[str, Any]:
    """What the fields of this prefix give as proof of who one is, in the terms of the API. Raises BadRequest."""
    given = {name: form.get(prefix + name, "") for name in ("password", "totp", "recovery_code", "passkey")}
    found: dict[str, Any] = {
        name: text if name == "password" else text.strip() for name, text in given.items() if text
    }
    if "passkey" in found:
        found["passkey"] = credential(given["passkey"])
    return found


class Answer:
    """What a handler of the API has answered: its document, and the cookies that a browser is to get with it."""

    def __init__(self, response: web.StreamResponse) -> None:
        assert isinstance(response, web.Response)
        self.document: dict[str, Any] = json.loads(response.body) if isinstance(response.body, bytes) else {}
        self._cookies = response.cookies

    def give_cookies(self, response: web.Response) -> None:
        """Set in ``response`` the cookies that it sets, and take back those that it takes back."""
        for morsel in self._cookies.values():
            response.cookies[morsel.key] = morsel


async def ask(request: web.Request, handler: Handler, **given: Any) -> Answer:
    """What ``handler``, one of the API, does with these fields; every rule of it holds. Raises what it raises."""
    request[GIVEN] = given
    return Answer(await handler(request))
