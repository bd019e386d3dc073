"""What is there before the load: users, registered over HTTP, and live sessions, straight into Postgres."""

import hashlib
import http.client
import json
import uuid
from dataclasses import dataclass

import psycopg2.extras

from bench.service import Service, ServiceError

USERS = 8
SESSIONS = 2000


@dataclass(frozen=True)
class Seed:
    """``logins``: (username, password) of users to log in. ``tokens``: live sessions of other users."""

    logins: list[tuple[str, str]]
    tokens: list[str]


def plant(service: Service) -> Seed:
    """Fill the service's database.

    The sessions belong to users who do not log in: a login ends all but a user's newest ones.
    """
    logins = [(f"visitor{number}", f"correct horse battery {number}") for number in range(USERS)]
    holders = [f"holder{number}" for number in range(USERS)]
    for username, password in [*logins, *((name, "a password nobody uses") for name in holders)]:
        _register(service, username, password)
    tokens = [str(uuid.uuid4()) for _ in range(SESSIONS)]
    _open_sessions(service, holders, tokens)
    return Seed(logins, tokens)


def _register(service: Service, username: str, password: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    try:
        body = json.dumps({"username": username, "password": password})
        connection.request("POST", "/account", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 201:
            raise ServiceError(f"POST /account answered {answer.status}: {answer.read()[:300]!r}")
    finally:
        connection.close()


def _open_sessions(service: Service, holders: list[str], tokens: list[str]) -> None:
    with service.connected() as cursor:
        psycopg2.extras.execute_values(
            cursor,
            """
            INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at, ip, user_agent)
            SELECT given.token_hash, u.id, u.epoch, now() + interval '1 day', '192.0.2.1', 'bench'
            FROM (VALUES %s) AS given (token_hash, holder)
            JOIN gatepost.users u ON u.canonical = given.holder
            """,
            [
                (hashlib.sha256(token.encode()).digest(), holders[number % len(holders)])
                for number, token in enumerate(tokens)
            ],
        )
        cursor.execute("ANALYZE gatepost.sessions, gatepost.users")  # as autovacuum would in a minute
