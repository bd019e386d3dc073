"""Every answer that a test gets is held against the OpenAPI document."""

import json
from typing import Any

from aiohttp import hdrs, web
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from gatepost.http.app import RENDERER
from gatepost.routes import api_document

Json = dict[str, Any]


def close(schema: Any) -> None:
    """Clients must pass over keys that they do not know; here, one that the document does not know is a mistake."""
    if isinstance(schema, dict):
        if "properties" in schema and "$ref" not in schema:
            schema.setdefault("additionalProperties", False)
        schema = list(schema.values())
    if isinstance(schema, list):
        for inner in schema:
            close(inner)


class Documented:
    """A listener for `on_response_prepare` that notes each answer of which the document knows nothing."""

    def __init__(self, document: str | None = None) -> None:
        self.violations: list[str] = []
        # A schema is taken out of the document here, so its references must say where the document is.
        self._document: Json = json.loads((document or api_document().decode()).replace('"#/', '"urn:api#/'))
        close(self._document["components"]["schemas"])
        self._registry: Any = Registry().with_resource("urn:api", DRAFT202012.create_resource(self._document))

    async def __call__(self, request: web.Request, response: web.StreamResponse) -> None:
        route = request.match_info.route
        if not route.handler.__module__.startswith(("gatepost.", "aiohttp.")):
            return  # a route that a test has added
        if route.handler.__module__.startswith("gatepost.pages."):
            return  # for people; tests/test_pages.py judges it
        if request.get(RENDERER):
            return  # an error that is told to people, as a page
        if complaint := self._complaint(request, response):
            self.violations.append(f"{request.method} {request.path} -> {response.status}: {complaint}")

    def _complaint(self, request: web.Request, response: web.StreamResponse) -> str | None:
        if request.method == hdrs.METH_OPTIONS and response.status == 204:
            return None if hdrs.ALLOW in response.headers else "without Allow"
        documented = self._find(request, response.status)
        if documented is None:
            return "this status is not in the document"
        if missing := [name for name in documented["headers"] if name not in response.headers]:
            return f"without {', '.join(missing)}"
        body = response.body if isinstance(response, web.Response) else None
        content = documented.get("content", {})
        if not content:
            return f"a body is not in the document: {body!r}" if body else None
        if response.content_type not in content:
            return f"{response.content_type} is not in the document, but {', '.join(content)}"
        if request.method == hdrs.METH_HEAD or not isinstance(body, bytes):
            return None
        value = json.loads(body) if response.content_type.endswith("json") else body.decode()
        validator = Draft202012Validator(content[response.content_type]["schema"], registry=self._registry)
        return "; ".join(f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)) or None

    def _find(self, request: web.Request, status: int) -> Json | None:
        """The response object of this answer."""
        route = request.match_info.route
        if route.resource is None or route.method == hdrs.METH_ANY:
            return self._of_no_operation(status)
        method = "get" if request.method == hdrs.METH_HEAD else request.method.lower()
        operation = self._document["paths"].get(route.resource.canonical, {}).get(method, {})
        found: Json | None = operation.get("responses", {}).get(str(status))
        return self._shared(found["$ref"].rpartition("/")[2]) if found and "$ref" in found else found

    def _of_no_operation(self, status: int) -> Json | None:
        """Another path, and another method of a path: the document's description tells of both."""
        if status == 405:
            schema = {"$ref": "urn:api#/components/schemas/ProblemDocument"}
            headers = [*self._shared("NotFound")["headers"], hdrs.ALLOW]
            return {"headers": headers, "content": {"application/problem+json": {"schema": schema}}}
        return self._shared({404: "NotFound", 500: "InternalError"}[status])

    def _shared(self, name: str) -> Json:
        found: Json = self._document["components"]["responses"][name]
        return found
