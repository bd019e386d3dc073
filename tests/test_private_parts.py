"""What is used of libraries that they do not promise: it is there, it does what is thought, and its absence is said.

In another version of a library, look here first (`make compat`).
"""

import ast
import asyncio
import inspect
import textwrap
from pathlib import Path

import aiopg
import aiopg.sa
import gunicorn.arbiter
import pytest
from aiohttp.web_protocol import RequestHandler
from aiohttp.worker import GunicornWebWorker

from gatepost.errors import UnsupportedLibrary
from gatepost.http import _aiohttp
from gatepost.postgres import _aiopg
from gatepost.postgres.database import Dsn
from gatepost.postgres.pool import Pool
from gatepost.workers import _gunicorn
from tests.conftest import Client, eventually
from tests.test_connection import Serve, connected, serve, server_of

__all__ = ["serve"]

SOURCE = Path(_aiohttp.__file__).parents[1]


def test_the_queue_of_requests_is_filled_by_append_alone() -> None:
    # `_Queue` hears of `append` alone.
    source = ast.parse(textwrap.dedent(inspect.getsource(RequestHandler)))
    uses = {
        (function.name, ast.unparse(parent))
        for function in ast.walk(source)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for parent in ast.walk(function)
        for child in ast.iter_child_nodes(parent)
        if isinstance(child, ast.Attribute) and child.attr == "_messages"
    }
    assert {(where, use) for where, use in uses if use not in ("len(self._messages)", "not self._messages")} == {
        ("__init__", "self._messages: deque[_MsgType] = deque()"),
        ("data_received", "self._messages.append"),
        ("finish_response", "self._messages.append"),
        ("start", "self._messages.popleft"),
    }


@pytest.mark.parametrize(("owner", "name"), _aiohttp.PRIVATE, ids=str)
def test_an_aiohttp_without_one_of_them_is_refused(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _aiohttp.require()
    other = type(owner.__name__, (), {each: None for of, each in _aiohttp.PRIVATE if of is owner and each != name})
    parts = {(other if of is owner else of, each): purpose for (of, each), purpose in _aiohttp.PRIVATE.items()}
    monkeypatch.setattr(_aiohttp, "PRIVATE", parts)
    with pytest.raises(UnsupportedLibrary, match=rf"has no {owner.__name__}.{name} "):
        _aiohttp.require()


@pytest.mark.parametrize("name", _aiopg.PRIVATE)
def test_an_aiopg_without_one_of_them_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _aiopg.require()
    monkeypatch.setattr(_aiopg, "PRIVATE", {f"{name}_of_another_release": "for a test"})
    with pytest.raises(UnsupportedLibrary, match=f"has no Connection.{name}_of_another_release "):
        _aiopg.require()


@pytest.mark.parametrize(("owner", "name"), _gunicorn.PRIVATE, ids=str)
def test_a_gunicorn_without_one_of_them_is_refused(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _gunicorn.require()
    monkeypatch.setattr(_gunicorn, "PRIVATE", {(owner, f"{name}_of_another_release"): "for a test"})
    with pytest.raises(UnsupportedLibrary, match=f"{owner.__name__}.{name}_of_another_release "):
        _gunicorn.require()


# Names that classes of ours have as well.
_COMMON = {"_loop", "_waiter", "_close", "_run", "_ready"}


def test_no_other_module_uses_them() -> None:
    theirs = {name for _, name in _aiohttp.PRIVATE} | set(_aiopg.PRIVATE)
    found = {
        (path.name, node.attr)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in theirs - _COMMON
    }
    assert {path for path, _ in found} == {"_aiohttp.py", "_aiopg.py"}


async def test_aiohttp_keeps_in_them_what_is_read_there(serve: Serve) -> None:
    client: Client = await serve()
    async with connected(client) as (reader, writer):
        await eventually(lambda: bool(server_of(client).admission.members))
        (one,) = server_of(client).admission.members
        assert (one.requests_begun, one.is_idle, one.is_queued, one.is_answered) == (0, True, False, True)
        began = one.waiting_since
        writer.write(b"POST /user HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        await eventually(lambda: one.requests_begun == 1 and not one.is_answered)
        assert not one.is_idle
        writer.write(b"{}")
        await reader.readuntil(b"\r\n\r\n")
        await eventually(lambda: one.is_idle and one.is_answered)
        assert one.waiting_since > began


async def test_an_error_that_is_put_into_the_queue_is_rendered_and_ends_the_connection(serve: Serve) -> None:
    client: Client = await serve()
    async with connected(client) as (reader, _):
        await eventually(lambda: bool(server_of(client).admission.members))
        (one,) = server_of(client).admission.members
        await asyncio.sleep(0)
        one.answer_with_error(400, UnsupportedLibrary("nobody is told this"))
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.0 500")
    assert b"nobody" not in answer


async def test_the_engine_finds_in_our_pool_all_that_it_uses(dsn: Dsn) -> None:
    source = inspect.getsource(aiopg.sa.Engine)
    used = {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(source)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "_pool"
    }
    assert used <= set(_aiopg.POOL)
    pool = Pool(dsn, 1)
    assert [name for name in _aiopg.POOL if not hasattr(pool, name)] == []


async def test_a_connection_of_aiopg_has_them(dsn: Dsn) -> None:
    pool = Pool(dsn, 1)
    connection = await pool.acquire()
    assert isinstance(connection, aiopg.Connection)
    assert [name for name in _aiopg.PRIVATE if not hasattr(connection, name)] == []
    assert await connection.fetch("SELECT %(a)s + 1", {"a": 1}) == [(2,)]
    pool.give_back(connection)
    pool.terminate()


def test_the_worker_and_the_arbiter_are_those_of_the_libraries() -> None:
    assert issubclass(_gunicorn.Arbiter, gunicorn.arbiter.Arbiter)
    assert issubclass(_gunicorn.Worker, GunicornWebWorker)
    source = inspect.getsource(GunicornWebWorker.run)
    assert "self._run()" in source
