"""The OpenAPI 3.1 document, made from the route table and the notes beside the handlers.

A module of ours, because none that exists serves: aiohttp-pydantic (3.0.2) writes OpenAPI 3.0 and wants Python 3.12,
class views and errors of its own; aiohttp-swagger3 takes 3.0 as YAML in docstrings; aiohttp-apispec rests since 2022.
"""

import json
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib.metadata import metadata
from typing import Any, Literal, NamedTuple

from aiohttp import hdrs, web
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from gatepost.errors import (
    DatabaseUnavailable,
    FactorRequired,
    Forbidden,
    ForeignOrigin,
    NotFound,
    TooManyAttempts,
    Unauthorized,
)
from gatepost.http.app import Handler
from gatepost.http.body import MAX_BODY
from gatepost.http.operation import Operation
from gatepost.ops.refusals import ANYWHERE, BODY, QUERY, TOKEN, ProblemDocument, Refusal, markdown, prose
from gatepost.sessions.guard import GUARDED

Json = dict[str, Any]

_DESCRIPTION = f"""\
JSON in and out. A body is one object of at most {MAX_BODY} bytes. Errors are `application/problem+json` (RFC 9457)
with a stable `code`. `HEAD` is answered wherever `GET` is, `OPTIONS` everywhere (204 with `Allow`); another method is
405 `method_not_allowed` with `Allow`, another path 404 `not_found`."""

_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer SESSION_ID`"},
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`Authorization: SESSION_ID`",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "__Host-session",
        "description": "For browsers that logged in with `cookie`. Plain `session` on the developer's own machine.",
    },
}

_HEADERS: dict[str, Json] = {
    "Cache-Control": {"description": "Nothing here may be kept.", "schema": {"type": "string", "const": "no-store"}},
    "Connection": {
        "description": "The connection ends with this answer.",
        "schema": {"type": "string", "const": "close"},
    },
    "Location": {"description": "Where it goes on.", "schema": {"type": "string", "format": "uri-reference"}},
    "RateLimit": {
        "description": "The limit that is used up, and the seconds until the next attempt (IETF draft).",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": "How much it holds, and the seconds until it is full again (IETF draft).",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}},
    "X-Request-ID": {"description": "The request's own where it was sound.", "schema": {"type": "string"}},
}
_EVERYWHERE = ("Cache-Control", "X-Request-ID")


def document(routes: Iterable[web.AbstractRouteDef], tags: Mapping[str, str]) -> Json:
    """The document of a route table. ``tags``: what the first part of a path stands for.

    Raises TypeError for a handler without a note, KeyError for a path without a tag.
    """
    router = web.UrlDispatcher()
    router.add_routes(routes)
    table = [
        (route.resource.canonical, route.method, route.handler, _note(route.handler))
        for route in router.routes()
        if route.resource and route.method != hdrs.METH_HEAD
    ]
    components = _components(note for *_, note in table)
    paths: dict[str, Json] = {}
    for path, method, handler, note in table:
        paths.setdefault(path, {})[method.lower()] = _operation(path, method, handler, note, components)
    about = metadata("gatepost")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gatepost",
            "summary": about["Summary"],
            "description": _DESCRIPTION,
            "license": {"name": about["License-Expression"], "identifier": about["License-Expression"]},
            "version": about["Version"],
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": tags[name]} for name in dict.fromkeys(map(_tag, paths))],
        "paths": paths,
        "components": {
            "schemas": components.schemas,
            "responses": dict(sorted(components.responses.items())),
            "headers": {name: {"required": True, **header} for name, header in _HEADERS.items()},
            "securitySchemes": _SECURITY,
        },
    }


def render(routes: Iterable[web.AbstractRouteDef], tags: Mapping[str, str], *, indent: int | None = None) -> str:
    """The document as JSON: the same bytes for the same routes."""
    return json.dumps(document(routes, tags), ensure_ascii=False, indent=indent)


def _note(handler: Any) -> Operation:
    note = getattr(handler, "__operation__", None)
    if not isinstance(note, Operation):
        raise TypeError(f"{handler.__module__}.{handler.__name__} has no @operation")
    return note


# ---------------------------------------------------------------------------------------------- schemas


class _Components(NamedTuple):
    of: Mapping[Any, Json]
    """A schema by its type; most often a reference into ``schemas``."""
    schemas: dict[str, Json]
    responses: dict[str, Json]
    """Those that name one problem; filled as they are met."""


def _components(notes: Iterable[Operation]) -> _Components:
    """The JSON Schemas of all types at once, so that two of one name are told apart."""
    taken: dict[Any, None] = {}
    given: dict[Any, None] = {ProblemDocument: None}
    queries = []
    for note in notes:
        taken |= dict.fromkeys(model for model in (note.body, note.query) if model)
        given |= dict.fromkeys(answer for answer in (note.answer,) if answer)
        queries += [note.query] if note.query else []
    modes: list[tuple[dict[Any, None], Literal["validation", "serialization"]]] = [
        (taken, "validation"),
        (given, "serialization"),
    ]
    found, definitions = TypeAdapter.json_schemas(
        [(each, mode, TypeAdapter(each)) for types, mode in modes for each in types],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    # Where two slices have a type of one name, its module is in the name: `AccountsChange` will do.
    told_apart = re.sub(
        r"gatepost__(\w+?)__(?:\w+__)?(\w+)",
        lambda match: match[1].title().replace("_", "") + match[2],
        json.dumps([list(found.values()), definitions.get("$defs", {})]),
    )
    by_type, by_name = json.loads(told_apart)
    of = dict(zip((each for each, _ in found), by_type, strict=True))
    schemas = dict(sorted(by_name.items()))
    for schema in schemas.values():
        # The name of the component is unique, and the title would not be: generators name classes after it.
        schema.pop("title", None)
        if "description" in schema:
            schema["description"] = markdown(schema["description"])
    for query in dict.fromkeys(queries):  # written out as parameters, so no component
        of[query] = schemas.pop(of[query]["$ref"].rpartition("/")[2])
    return _Components(of, schemas, {})


class _Untitled(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 (a field's name is title enough)
        return False


# ------------------------------------------------------------------------------------------- operations


def _operation(path: str, method: str, handler: Handler, note: Operation, components: _Components) -> Json:
    summary, _, description = prose(handler).partition("\n\n")
    role = GUARDED.get(handler)
    has_token = handler in GUARDED or Unauthorized in note.problems
    operation: Json = {
        "operationId": "_".join([handler.__module__.split(".")[1], handler.__name__]),
        "tags": [_tag(path)],
        "summary": summary,
    }
    if description:
        operation["description"] = description
    if parameters := [*_path_parameters(path), *_query_parameters(note, components)]:
        operation["parameters"] = parameters
    if note.body:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": components.of[note.body]}},
        }
        if note.any_content_type:
            operation["requestBody"]["description"] = "JSON, whatever Content-Type says."
    refusals = [*ANYWHERE, *map(Refusal.of, note.problems)]
    refusals += BODY if note.body else ()
    refusals += QUERY if note.query else ()
    refusals += [Refusal.of(NotFound)] if "{" in path else []  # a path with U+0000 is not found either
    refusals += TOKEN if has_token else ()
    refusals += [Refusal.of(TooManyAttempts), Refusal.of(FactorRequired)] if handler in GUARDED else []
    refusals += [Refusal.of(Forbidden)] if role else []
    refusals += [Refusal.of(ForeignOrigin)] if has_token and method != hdrs.METH_GET else []
    # Only a public GET can do without the database; one that does not says so itself.
    refusals += [Refusal.of(DatabaseUnavailable)] if has_token or method != hdrs.METH_GET else []
    by_status = sorted({refusal.status for refusal in refusals})
    operation["responses"] = {
        str(note.status): _answered(note, components),
        **({"303": _redirected(note.redirect)} if note.redirect else {}),
        **{str(status): _refused((r for r in refusals if r.status == status), components) for status in by_status},
    }
    operation["security"] = [{name: [role] if role else []} for name in _SECURITY] if has_token else []
    return operation


def _path_parameters(path: str) -> list[Json]:
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(note: Operation, components: _Components) -> list[Json]:
    if not note.query:
        return []
    model = components.of[note.query]
    required = model.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in model["properties"].items()
    ]


def _answered(note: Operation, components: _Components) -> Json:
    response: Json = {"description": HTTPStatus(note.status).phrase, "headers": _headers()}
    if note.answer:
        response["content"] = {note.media_type: {"schema": components.of[note.answer]}}
    return response


def _redirected(where: str) -> Json:
    return {"description": where, "headers": _headers(hdrs.LOCATION)}


def _refused(refusals: Iterable[Refusal], components: _Components) -> Json:
    """One response: the problems of one status."""
    by_code = {refusal.code: refusal for refusal in sorted(refusals)}
    headers = sorted({name for refusal in by_code.values() for name in refusal.headers})
    # Beside the reference and not in an `allOf` with it: of that, openapi-python-client made 420 classes more, and a
    # client of today would fail at a code of tomorrow.
    schema = {"$ref": "#/components/schemas/ProblemDocument", "properties": {"code": {"enum": list(by_code)}}}
    response = {
        "description": "\n".join(f"- `{code}`: {refusal.text}" for code, refusal in by_code.items()),
        "headers": _headers(*headers),
        "content": {"application/problem+json": {"schema": schema}},
    }
    if len(by_code) > 1:
        return response
    name = next(iter(by_code)).title().replace("_", "")
    components.responses[name] = response
    return {"$ref": f"#/components/responses/{name}"}


def _headers(*more: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*_EVERYWHERE, *more)}


def _tag(path: str) -> str:
    return path.split("/")[1]
