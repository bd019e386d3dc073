"""The examples run, know who is signed in, and refuse who was signed out."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest

from gatepost.postgres.database import Dsn
from gatepost.services.token import new_token
from gatepost.sessions.session import hash_token
from tests.conftest import Client, log_in, register, rows

EXAMPLES = Path(__file__).parent.parent / "examples"
SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def running(name: str, tmp_path: Path, variables: Mapping[str, str], port: int = 0) -> AsyncIterator[str]:
    port = port or free_port()
    more = ["runserver", "--noreload", str(port)] if name == "django" else []
    environment = os.environ | dict(variables) | {"PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES / f"{name}_app.py"), *more, cwd=tmp_path, env=environment
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def status(http: aiohttp.ClientSession, url: str, token: str) -> tuple[int, object]:
    """What the backend answers, once it does."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                async with http.get(f"{url}/notes", headers={"Authorization": f"Bearer {token}"}) as answer:
                    return answer.status, (await answer.json())["notes_of"] if answer.status == 200 else None
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("name", ["aiohttp", "fastapi", "django"])
async def test_a_backend_knows_who_is_signed_in_and_refuses_who_was_signed_out(
    name: str, client: Client, dsn: Dsn, tmp_path: Path
) -> None:
    service = new_token()
    rows(dsn, "INSERT INTO gatepost.services (name, token_hash) VALUES ('examples', %s)", hash_token(service))
    await register(client, "ada")
    token = await log_in(client)
    variables = {"GATEPOST_URL": str(client.make_url("/")), "GATEPOST_SERVICE_TOKEN": service}
    async with running(name, tmp_path, variables) as url, aiohttp.ClientSession() as http:
        assert await status(http, url, token) == (200, "ada")
        await client.delete("/user", headers={"Authorization": token})
        async with asyncio.timeout(SECONDS):
            while await status(http, url, token) != (401, None):
                await asyncio.sleep(0.01)
        if name == "aiohttp":
            async with http.get(url) as page:
                assert "<title>Notes</title>" in await page.text()
