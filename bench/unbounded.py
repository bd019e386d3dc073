"""What Gatepost is held against under a flood: the same framework, database and SQL, hashing as it is mostly done.

Each password is hashed by `run_in_executor(None, …)`, whose queue has no end. Sessions are checked as Gatepost does.
`python -m bench.unbounded DATA_DIR` serves on a free port, which it prints, with the embedded Postgres running there.
"""

import asyncio
import secrets
import sys
import uuid
from pathlib import Path

from aiohttp import web

from gatepost.config import Config, ThrottleConfig
from gatepost.errors import DatabaseUnavailable
from gatepost.http.app import Handler
from gatepost.postgres.database import LOOKUP_CONNECTIONS, Database, Dsn
from gatepost.postgres.embedded import EmbeddedPostgres
from gatepost.security.credentials import Credentials
from gatepost.security.credentials.hashing import Derived, derive
from gatepost.security.credentials.kinds import parse
from gatepost.security.identifier import Identifier
from gatepost.security.throttle import Throttle
from gatepost.sessions import queries
from gatepost.sessions.lookup import Lookup
from gatepost.sessions.session import hash_token


@web.middleware
async def unavailable(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the database did not answer in time is 503 here too."""
    try:
        return await handler(request)
    except DatabaseUnavailable:
        return web.json_response({}, status=503)


class App:
    """`POST /user` and `GET /user`."""

    def __init__(self, config: Config, database: Database, lookup: Lookup, credentials: Credentials) -> None:
        self._limits = config.sessions
        self._throttle = Throttle(
            ThrottleConfig(account_burst=1_000_000, activity_burst=1_000_000, activity_every=0.001),
            secrets.token_bytes(32),
        )
        self._database, self._lookup, self._credentials = database, lookup, credentials

    async def log_in(self, request: web.Request) -> web.Response:
        """Open a session."""
        given = await request.json()
        name, token = str(given["username"]), str(uuid.uuid4())
        entry = queries.Entry(Identifier(name), None, self._throttle.for_login(name, None))
        stored, taken = await self._database.read(queries.find_setting, entry)
        setting = stored or self._credentials.dummy(name)
        loop, secret = asyncio.get_running_loop(), str(given["password"]).encode()
        derived: Derived = await loop.run_in_executor(None, derive, parse(setting.phc), lambda: secret)
        activity = self._throttle.for_activity(name)
        attempt = queries.Attempt(
            entry.identifier, setting, derived.digest, hash_token(token), activity, request.remote, None, None, taken
        )
        limits = self._limits
        opened = await self._database.write(
            queries.open_session, attempt, lifetime=limits.lifetime, max_per_user=limits.max_per_user
        )
        return web.json_response({"session_id": token}) if opened else web.json_response({}, status=401)

    async def who_am_i(self, request: web.Request) -> web.Response:
        """Check a session."""
        session = await self._lookup.find(hash_token(request.headers["Authorization"]))
        if session is None:
            return web.json_response({}, status=401)
        return web.Response(body=session.document.encode(), content_type="application/json")


async def _serve(data_dir: Path) -> None:
    server = EmbeddedPostgres.attach(data_dir)
    if server is None:
        sys.exit(f"no Postgres runs in {data_dir}")
    config, dsn = Config(), Dsn.of_embedded(server)
    database = await Database.open(dsn, config.db.pool_size - LOOKUP_CONNECTIONS)
    lookup = Lookup(await Database.open(dsn, LOOKUP_CONNECTIONS), config.sessions.idle_timeout)
    it = App(config, database, lookup, await Credentials.open(config.passwords, database))
    app = web.Application(middlewares=[unavailable])
    app.add_routes([web.post("/user", it.log_in), web.get("/user", it.who_am_i)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
