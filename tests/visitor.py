"""Somebody who looks at pages over HTTP: what a browser without scripts does with their forms and cookies."""

import xml.etree.ElementTree as ET
from typing import Any
from urllib.parse import urlsplit

import html5lib

from tests.conftest import PASSWORD, Client

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}


class Form:
    """A form of a page, with what its fields hold."""

    def __init__(self, element: ET.Element) -> None:
        self.action = element.attrib["action"]
        inputs = [each for each in element.iter() if each.tag in ("input", "select", "textarea")]
        self.fields = {each.attrib["name"]: each.attrib.get("value", "") for each in inputs if "name" in each.attrib}
        self.hidden = {each.attrib["name"] for each in inputs if each.attrib.get("type") == "hidden"}


class Page:
    """An answer that is a page: strict HTML, or this fails."""

    def __init__(self, status: int, headers: Any, html: str, path: str) -> None:
        self.status = status
        self.headers = headers
        self.html = html
        self.path = path
        html5lib.HTMLParser(strict=True).parse(html)
        self.tree: ET.Element = html5lib.parse(html, namespaceHTMLElements=False)

    def all(self, tag: str) -> list[ET.Element]:
        return [each for each in self.tree.iter() if str(each.tag).rpartition("}")[2] == tag]

    def text_of(self, tag: str, **attributes: str) -> list[str]:
        found = (each for each in self.tree.iter(tag) if attributes.items() <= each.attrib.items())
        return [" ".join("".join(each.itertext()).split()) for each in found]

    @property
    def title(self) -> str:
        return self.text_of("h1")[0]

    @property
    def problem(self) -> str | None:
        return next(iter(self.text_of("p", **{"class": "problem"})), None)

    @property
    def notice(self) -> str | None:
        return next(iter(self.text_of("p", **{"class": "notice", "role": "status"})), None)

    @property
    def errors(self) -> dict[str, str]:
        """What is said at each field, by its id."""
        said = {each.attrib["id"]: "".join(each.itertext()) for each in self.tree.iter("p") if "id" in each.attrib}
        return {name.removesuffix("-error"): text for name, text in said.items() if name.endswith("-error")}

    @property
    def forms(self) -> list[Form]:
        return [Form(each) for each in self.tree.iter("form")]

    def form(self, action: str) -> Form:
        return next(each for each in self.forms if each.action == action)


class Visitor:
    """Keeps a cookie, follows redirects to pages of ours, and stops at those that lead elsewhere."""

    def __init__(self, client: Client, token: str | None = None) -> None:
        self.client = client
        self.cookies = {"session": token} if token else {}
        self.left: str | None = None
        """Where the last answer has led to, outside of our pages."""

    async def get(self, path: str, **headers: str) -> Page:
        return await self._ask("GET", path, headers, None)

    async def post(self, path: str, fields: dict[str, str], **headers: str) -> Page:
        return await self._ask("POST", path, {**SAME_ORIGIN, **headers}, fields)

    async def send(self, form: Form, **fields: str) -> Page:
        return await self.post(form.action, {**form.fields, **fields})

    async def _ask(self, method: str, path: str, headers: dict[str, str], fields: dict[str, str] | None) -> Page:
        for _ in range(5):
            cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
            self.client.session.cookie_jar.clear()  # which all visitors of a client would share
            answer = await self.client.request(
                method,
                path,
                data=fields,
                headers={**headers, **(cookie if self.cookies else {})},
                allow_redirects=False,
            )
            for name, morsel in answer.cookies.items():
                self.cookies[name] = morsel.value
                if not morsel.value:
                    del self.cookies[name]
            if answer.status != 303:
                return Page(answer.status, answer.headers, await answer.text(), path)
            path, method, fields, headers = answer.headers["Location"], "GET", None, {}
            if urlsplit(path).netloc:
                self.left = path
                return Page(303, answer.headers, "<!doctype html><title>elsewhere</title>", path)
        raise AssertionError("more redirects than a browser follows")

    async def sign_in(self, username: str = "ada", password: str = PASSWORD, **fields: str) -> Page:
        return await self.post("/sign-in", {"username": username, "password": password, **fields})
