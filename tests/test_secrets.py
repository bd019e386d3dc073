"""A whole conversation with a real process: what it tells its operator holds no secret."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import re
import socket
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gatepost.postgres.database import Dsn
from gatepost.routes import ROUTES
from tests.conftest import rows
from tests.gatepost_process import Process, gatepost, running, until
from tests.received_mail import Folder
from tests.test_server import CHEAP, OPEN, environment_of

PEPPER = "an-unusual-pepper-of-the-tests"
OLD, NEW, WRONG, CHOSEN, IMPORTED, MISPLACED = (
    f"{word} horse battery {word}" for word in ("old", "new", "wrong", "chosen", "imported", "misplaced")
)
# Django's, of IMPORTED: made by hashlib below.
SALT = "saltofthetests"


class Conversation:
    """Requests, whatever is answered; and each answer's ``X-Request-ID`` with its status."""

    def __init__(self, process: Process) -> None:
        url = urlsplit(process.url)
        assert url.hostname
        self.address = (url.hostname, url.port or 0)
        self.answered: dict[str, int] = {}
        self.refusals = ""

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, data, {"Content-Type": "application/json"} | named)
            answer = connection.getresponse()
            text = answer.read().decode()
        self.answered[answer.headers["X-Request-ID"]] = answer.status
        if answer.status >= 400:
            self.refusals += f"{answer.headers}{text}"
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text

    def send(self, request: bytes) -> None:
        """Bytes that need not be HTTP. What aiohttp answers quotes them to their sender, and is nobody else's."""
        with socket.create_connection(self.address, timeout=60) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    digest = hashlib.pbkdf2_hmac("sha256", IMPORTED.encode(), SALT.encode(), 1000)
    import base64

    line = {"username": "imre", "hash": f"pbkdf2_sha256$1000${SALT}${base64.b64encode(digest).decode()}"}
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps(line) + "\n" + json.dumps(line | {"username": "x", "hash": MISPLACED}) + "\n")
    return file


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_password_token_digest_pepper_cookie_or_code_is_in_a_line_a_metric_or_an_error(  # noqa: PLR0915
    dsn: Dsn, tmp_path: Path, imported: Path, style: str
) -> None:
    settings = {
        **environment_of(dsn),
        **OPEN,
        **CHEAP,
        "GATEPOST_PASSWORDS__PEPPERS__1": PEPPER,
        "GATEPOST_LOG__LEVEL": "debug",
        "GATEPOST_LOG__CHECKS": "true",
        "GATEPOST_LOG__FORMAT": style,
    }
    told = gatepost("user", "import", str(imported), cwd=tmp_path, **settings)
    said = told.stdout + told.stderr
    assert "1" in told.stdout, told
    secrets = {OLD, NEW, WRONG, CHOSEN, IMPORTED, MISPLACED, PEPPER, SALT, dsn.password}
    with running(tmp_path, **settings) as process:
        talk = Conversation(process)
        ask = talk.ask

        def log_in(username: str, password: str, **more: object) -> str:
            status, body = ask("POST", "/user", {"username": username, "password": password, **more})
            assert status == 200, body
            secrets.add(body["session_id"])
            token: str = body["session_id"]
            return token

        assert ask("POST", "/account", {"username": "ada", "password": OLD})[0] == 201
        rows(dsn, "UPDATE gatepost.users SET roles = '{admin}'")
        token = log_in("ada", OLD)
        assert log_in("imre", IMPORTED)
        assert ask("POST", "/user", {"username": "ada", "password": WRONG})[0] == 401
        assert ask("POST", "/user", {"username": MISPLACED, "password": "ada"})[0] == 401
        cookie = f"session={log_in('ada', OLD, cookie=True)}"
        assert ask("GET", "/user", Cookie=cookie, Host="localhost")[0] == 200
        assert ask("GET", "/user", Authorization=token, X_Request_ID="from-a-client.1")[0] == 200
        assert ask("GET", "/account/export", Authorization=token)[0] == 200
        assert ask("PUT", "/account/password", {"current": WRONG, "new": NEW}, Authorization=token)[0] == 403
        status, body = ask("PUT", "/account/password", {"current": OLD, "new": NEW}, Authorization=token)
        assert status == 200
        secrets.add(token := body["session_id"])
        ada = ask("GET", "/account", Authorization=token)[1]["user"]["id"]
        status, body = ask("POST", f"/admin/users/{ada}/password-reset", Authorization=token)
        assert status == 200, body
        secrets.add(code := body["reset"]["code"])
        assert ask("POST", "/account/password/redeem", {"code": code[:-1], "new": CHOSEN})[0] == 403
        assert ask("POST", "/account/password/redeem", {"code": code, "new": CHOSEN})[0] == 200
        token = log_in("ada", CHOSEN)
        # What is wrong, with a secret in it.
        for body in (b'{"username": "' + WRONG.encode(), b"[" * 50 + token.encode(), {"username": token}, [token]):
            assert ask("POST", "/user", body)[0] in {400, 422}
        for path in (
            f"/{token}",
            f"/sessions/{token}",
            f"/admin/users/{token}",
            f"/user?token={token}",
            f"/%00{token}",
        ):
            ask("GET", path, Authorization=token)
        ask("GET", "/user", Authorization=f"Bearer {token} {token}", User_Agent=token, X_Request_ID=f"no {token}")
        ask("PURGE", f"/{token}", Authorization=token)
        for request in (
            f"GET /{token} HTTP/1.1\r\nA B: {token}\r\n\r\n",
            f"{token} / HTTP/1.1\r\n\r\n",
            f"GET /user?{'x' * 9000}{token} HTTP/1.1\r\n\r\n",
            f"POST /user HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{CHOSEN}",
        ):
            talk.send(request.encode())
        # Faults: Postgres quotes the row that it refuses, and the driver the statement.
        rows(dsn, "ALTER TABLE gatepost.sessions ADD CHECK (epoch < 0) NOT VALID")
        assert ask("POST", "/user", {"username": "ada", "password": CHOSEN})[0] == 500
        rows(dsn, "ALTER TABLE gatepost.password_resets RENAME COLUMN code_hash TO elsewhere")
        assert ask("POST", "/account/password/redeem", {"code": code, "new": CHOSEN})[0] == 500
        rows(dsn, "ALTER TABLE gatepost.sessions RENAME TO elsewhere")
        assert ask("GET", "/user", Authorization=token)[0] == 500
        digests = rows(dsn, "SELECT setting, encode(digest, 'hex') FROM gatepost.passwords")
        hashes = rows(dsn, "SELECT encode(token_hash, 'hex') FROM gatepost.elsewhere")
        metrics = ask("GET", "/metrics")[1]
        assert ask("DELETE", "/user", Authorization=token)[0] == 500
        assert process.end() == 0
    secrets |= {part for setting, digest in digests for part in (digest, setting.rpartition("$")[2])}
    secrets |= {row[0] for row in hashes}
    secrets |= {hashlib.sha256(secret.encode()).hexdigest() for secret in secrets}
    assert len(digests) == 2
    assert len(hashes) >= 2
    for where, text in {"log": process.output, "metrics": metrics, "errors": talk.refusals, "command": said}.items():
        assert len(text) > 20
        for secret in secrets - {""}:
            assert secret not in text, where
            assert secret.encode().hex() not in text, where
    assert "Traceback" not in process.output
    if style == "json":
        check_lines(process, talk, dsn)


def check_lines(process: Process, talk: Conversation, dsn: Dsn) -> None:
    lines = [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]
    told = {line["request_id"]: line for line in lines if line["event"] == "request"}
    # One line for each answer, of the same name and status.
    answered = {name: status for name, status in talk.answered.items() if name}
    assert {name: line["status"] for name, line in told.items() if name in answered} == answered
    assert "from-a-client.1" in told
    assert len(told) == len([line for line in lines if line["event"] == "request"])
    assert {line["route"] for line in told.values()} <= {route.path for route in ROUTES} | {"unmatched"}
    assert all(line["duration_ms"] >= 0 for line in told.values())
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"]) for line in lines)
    faults = [(line["route"], line["error"]) for line in told.values() if line["level"] == "error"]
    assert faults[:3] == [
        ("/user", "CheckViolation"),
        ("/account/password/redeem", "UndefinedColumn"),
        ("/user", "UndefinedTable"),
    ]
    assert all(line["where"] for line in told.values() if line["level"] == "error")
    # A kind is one that was recorded, as often.
    kinds = [line["kind"] for line in told.values() if "kind" in line]
    recorded = [row[0] for row in rows(dsn, "SELECT kind FROM gatepost.events WHERE NOT detail ? 'by'")]
    for kind in set(kinds):
        assert kinds.count(kind) == recorded.count(kind), kind
    assert {"authn_login_success", "authn_login_fail", "authn_password_change", "user_created"} <= set(kinds)


def test_no_code_and_no_address_of_a_mail_is_in_a_line_a_metric_or_an_event(dsn: Dsn, tmp_path: Path) -> None:
    folder, address, password = tmp_path / "mail", "ada@example.org", "a secret of the mail server"
    settings = {**environment_of(dsn), **OPEN, **CHEAP, "GATEPOST_LOG__LEVEL": "debug"}
    with running(tmp_path, **settings, GATEPOST_MAIL__DIRECTORY=str(folder)) as process:
        ask = Conversation(process).ask
        assert ask("POST", "/account", {"username": "ada", "password": OLD, "email": address})[0] == 201
        token = ask("POST", "/user", {"username": "ada", "password": OLD})[1]["session_id"]
        email = ask("GET", "/account/emails", Authorization=token)[1]["emails"][0]["id"]
        mails = [asyncio.run(Folder(folder).receive(address))]
        assert ask("POST", f"/account/emails/{email}/verify", {"code": "0000-0000"}, Authorization=token)[0] == 403
        path, body = f"/account/emails/{email}/verify", {"code": mails[0].typed}
        assert ask("POST", path, body, Authorization=token)[0] == 200
        assert ask("POST", "/account/recovery", {"identifier": address})[0] == 202
        mails.append(asyncio.run(Folder(folder).receive(address, kind="Choose")))
        redemption = {"code": mails[1].typed, "identifier": address, "new": NEW}
        assert ask("POST", "/account/password/redeem", redemption)[0] == 200
        metrics = ask("GET", "/metrics")[1]
        assert process.end() == 0
    said = process.output
    # And a server that repeats the address, and closes the door.
    down = {"HOST": "127.0.0.1", "PORT": "1", "SECURITY": "starttls", "FROM_ADDRESS": "gatepost@example.net"}
    down |= {"USER": "gatepost", "PASSWORD": password}
    rows(
        dsn,
        "INSERT INTO gatepost.outbox (kind, user_id, address, language, created_at) "
        "SELECT 'password_changed', id, %s, 'en', now() - interval '25 hours' FROM gatepost.users RETURNING 1",
        address,
    )
    with running(
        tmp_path, **settings, **{f"GATEPOST_MAIL__{name}": value for name, value in down.items()}
    ) as process:
        until(lambda: rows(dsn, "SELECT count(*) FROM gatepost.outbox") == [(0,)])
        assert process.end() == 0
    said += process.output
    assert "a mail is given up" in said
    events = str(rows(dsn, "SELECT to_jsonb(e)::text FROM gatepost.events e"))
    codes = [mail.typed for mail in mails] + [mail.typed.replace("-", "") for mail in mails]
    for where, text in {"log": said, "metrics": metrics, "events": events}.items():
        for secret in (*codes, address, password):
            assert secret not in text, where
    assert "Traceback" not in said


def test_a_token_is_no_request_id_by_chance(dsn: Dsn, tmp_path: Path) -> None:
    """Without a sound name of the client's a request gets one of ours, never a part of the client's."""
    with running(tmp_path, **environment_of(dsn), GATEPOST_LOG__CHECKS="true") as process:
        talk = Conversation(process)
        odd = str(uuid.uuid4()) + " "
        for name in (odd * 2, odd + "\t" + odd, "x" * 65, "a=b", "é", ""):
            talk.ask("GET", "/ping", X_Request_ID=name)
        assert process.end() == 0
    assert len(talk.answered) == 6
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in talk.answered)
    assert odd.strip() not in process.output
    assert all(name in process.output for name in talk.answered)


def test_answered_checks_get_no_log_line_and_failed_ones_do(dsn: Dsn, tmp_path: Path) -> None:
    with running(tmp_path, **environment_of(dsn), **OPEN, **CHEAP) as process:
        talk = Conversation(process)
        talk.ask("POST", "/account", {"username": "ada", "password": OLD})
        token = talk.ask("POST", "/user", {"username": "ada", "password": OLD})[1]["session_id"]
        for path in ("/ping", "/health/live", "/health/ready", "/metrics", "/user", "/authz/forward"):
            for method in ("GET", "HEAD"):
                assert talk.ask(method, path, Authorization=token, X_Original_Method="GET")[0] == 200, path
        for path in ("/user", "/authz/forward"):
            assert talk.ask("GET", path)[0] == 401
        rows(dsn, "ALTER SCHEMA gatepost RENAME TO elsewhere")
        assert talk.ask("GET", "/user", Authorization=token)[0] == 500
        assert process.end() == 0
    lines = [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]
    assert [(line["method"], line["route"], line["status"]) for line in lines if line["event"] == "request"] == [
        ("POST", "/account", 201),
        ("POST", "/user", 200),
        ("GET", "/user", 500),
    ]
