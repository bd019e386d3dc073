"""The outbox and its sender, against an SMTP server that fails in every way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiosmtpd.smtp import SMTP, Envelope
from pydantic import SecretStr

from gatepost.config import Config, MailConfig
from gatepost.errors import DatabaseUnavailable
from gatepost.mail.outbox import sender as module
from gatepost.mail.outbox.sender import Sender
from gatepost.postgres.database import Database, Dsn
from gatepost.security.throttle import Throttle
from tests.conftest import PASSWORD, Client, StartServer, log_in, register, rows
from tests.gatepost_process import running
from tests.received_mail import Folder
from tests.smtp_server import SMTP_PASSWORD, USER, SmtpServer, accept, certificate
from tests.test_server import OPEN, environment_of

# aiosmtpd cannot know that the whole connection is TLS.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")


@pytest.fixture
def smtp() -> SmtpServer:
    return SmtpServer()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is away, and a mail that is refused, are tried again soon."""
    monkeypatch.setattr(module, "POLL", 0.05)
    monkeypatch.setattr(module, "FIRST_ABSENCE", 0.05)
    monkeypatch.setattr(module, "LONGEST_ABSENCE", 0.1)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)


def with_smtp(config: Config, smtp: SmtpServer, **changes: Any) -> Config:
    values = {"security": "none", "from_address": "Example <accounts@example.org>", "timeout": 5.0} | changes
    return config.model_copy(update={"mail": MailConfig(host="127.0.0.1", port=smtp.port, **values)})


async def add(client: Client, token: str, address: str) -> None:
    body = {"email": address, "password": PASSWORD}
    async with client.post("/account/emails", json=body, headers={"Authorization": token}) as answer:
        assert answer.status == 201, await answer.text()


def fill(dsn: Dsn, number: int) -> None:
    """Queue so many notices to one user, each to an address of its own."""
    rows(dsn, "INSERT INTO gatepost.users (username, canonical) VALUES ('ada', 'ada') RETURNING 1")
    rows(
        dsn,
        "INSERT INTO gatepost.outbox (kind, user_id, address, language) SELECT 'password_changed', id, "
        "'ada' || n || '@example.org', 'en' FROM gatepost.users, generate_series(1, %s) n RETURNING 1",
        number,
    )


def waiting(dsn: Dsn) -> list[tuple[int, str | None]]:
    return [(row[0], row[1]) for row in rows(dsn, "SELECT tries, error FROM gatepost.outbox ORDER BY created_at")]


async def until_why(dsn: Dsn, why: str) -> None:
    async with asyncio.timeout(60):
        while not any(why in (error or "") for _, error in waiting(dsn)):
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def sender(config: Config, dsn: Dsn) -> AsyncIterator[Sender]:
    database = await Database.open(dsn, 5)
    try:
        yield Sender(config, database, Throttle(config.throttle, bytes(32)))
    finally:
        await database.close()


# ---------------------------------------------------------------------------------------------------- TLS


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_mail_goes_over_tls_and_signed_in(
    config: Config, tmp_path: Path, start_server: StartServer, smtp: SmtpServer, security: str
) -> None:
    served, authority = certificate(tmp_path)
    contexts = {"tls": served} if security == "tls" else {"starttls": served}
    async with smtp.listening(auth=True, **contexts):
        secrets = {"user": USER, "password": SecretStr(SMTP_PASSWORD)}
        client = await start_server(with_smtp(config, smtp, security=security, tls_ca=authority, **secrets))
        await register(client, "ada")
        await add(client, await log_in(client), "ada@example.org")
        await smtp.count(1)
    assert smtp.users == [USER]
    if security == "starttls":
        assert smtp.plain == [False]
    (mail,) = smtp.received
    assert mail.recipients == ["ada@example.org"]
    assert str(mail.message["To"]) == "ada@example.org"
    assert str(mail.message["From"]) == "Example <accounts@example.org>"
    assert mail.message["Auto-Submitted"] == "auto-generated"
    assert mail.message["Message-ID"].endswith("@example.org>")
    assert mail.message["Date"]
    assert mail.message.get_content_type() == "multipart/alternative"


async def test_a_certificate_that_nobody_vouches_for_gets_no_mail(
    config: Config, tmp_path: Path, dsn: Dsn, start_server: StartServer, smtp: SmtpServer
) -> None:
    served, _ = certificate(tmp_path)
    async with smtp.listening(starttls=served):
        await start_server(with_smtp(config, smtp, security="starttls"))
        fill(dsn, 1)
        await until_why(dsn, "CERTIFICATE_VERIFY_FAILED")
    assert smtp.received == []


async def test_a_server_without_tls_gets_no_mail_unless_the_configuration_says_so(
    config: Config, dsn: Dsn, start_server: StartServer, smtp: SmtpServer
) -> None:
    async with smtp.listening():
        await start_server(with_smtp(config, smtp, security="starttls"))
        fill(dsn, 1)
        await until_why(dsn, "STARTTLS")
    assert smtp.received == []


async def test_a_wrong_password_at_the_server_is_told_without_the_password(
    config: Config, tmp_path: Path, dsn: Dsn, start_server: StartServer, smtp: SmtpServer
) -> None:
    served, authority = certificate(tmp_path)
    async with smtp.listening(starttls=served, auth=True):
        secrets = {"user": USER, "password": SecretStr("not the right one")}
        await start_server(with_smtp(config, smtp, security="starttls", tls_ca=authority, **secrets))
        fill(dsn, 1)
        await until_why(dsn, "535")
    assert "not the right one" not in str(waiting(dsn))
    assert "not the right one" not in repr(with_smtp(config, smtp, security="starttls", **secrets))


# ------------------------------------------------------------------------------------------------- faults


async def test_while_the_server_is_down_requests_go_on_and_afterwards_each_mail_arrives_once(
    config: Config, dsn: Dsn, start_server: StartServer, smtp: SmtpServer
) -> None:
    async with smtp.listening():
        pass  # the port is known now, and closed
    client = await start_server(with_smtp(config, smtp))
    await register(client, "ada")
    token = await log_in(client)
    for n in range(5):
        await add(client, token, f"ada{n}@example.org")
    await until_why(dsn, "127.0.0.1")
    assert [tries for tries, _ in waiting(dsn)] in ([0] * 5, [1] * 5)  # that it was away is no try of the mail's
    async with smtp.listening():
        await smtp.count(5)
        await asyncio.sleep(0.3)
    assert sorted(mail.recipients[0] for mail in smtp.received) == [f"ada{n}@example.org" for n in range(5)]
    assert waiting(dsn) == []


async def drop(server: SMTP, _envelope: Envelope) -> str:
    assert isinstance(server.transport, asyncio.Transport)
    server.transport.abort()
    return "421 gone"


async def hang(_server: SMTP, _envelope: Envelope) -> str:
    await asyncio.sleep(3600)
    return "250 OK"


async def refuse(_server: SMTP, _envelope: Envelope) -> str:
    return "451 try again later"


async def refuse_for_good(_server: SMTP, _envelope: Envelope) -> str:
    return "554 no such thing"


async def close(_server: SMTP, _envelope: Envelope) -> str:
    return "421 shutting down"


@pytest.mark.parametrize("fault", [drop, hang, refuse, refuse_for_good, close])
async def test_whatever_the_server_does_to_the_content_the_mail_arrives_once_when_it_accepts_again(
    config: Config, dsn: Dsn, start_server: StartServer, smtp: SmtpServer, fault: Any
) -> None:
    smtp.answer = fault
    async with smtp.listening():
        client = await start_server(with_smtp(config, smtp, timeout=0.3))
        await register(client, "ada")
        await add(client, await log_in(client), "ada@example.org")
        async with asyncio.timeout(60):
            while not any(error for _, error in waiting(dsn)):
                await asyncio.sleep(0.02)
        assert smtp.received == []
        smtp.answer = accept
        await smtp.count(1)
        await asyncio.sleep(0.3)
        assert len(smtp.received) == 1
        # Each try has a code of its own; the one that arrived counts.
        async with client.post("/user", json={"username": "ada", "password": PASSWORD}) as answer:
            token = (await answer.json())["session_id"]
        async with client.get("/account/emails", headers={"Authorization": token}) as answer:
            email_id = (await answer.json())["emails"][0]["id"]
        path, body = f"/account/emails/{email_id}/verify", {"code": smtp.received[0].typed}
        async with client.post(path, json=body, headers={"Authorization": token}) as answer:
            assert answer.status == 200


async def test_a_mail_that_is_refused_holds_up_no_other(
    config: Config, dsn: Dsn, start_server: StartServer, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 3600)
    smtp.refused = {f"ada{n}@example.org" for n in range(1, 11)}
    fill(dsn, 20)
    async with smtp.listening():
        await start_server(with_smtp(config, smtp))
        await smtp.count(10)
        async with asyncio.timeout(60):
            while waiting(dsn) != [(1, "450 mailbox busy")] * 10:
                await asyncio.sleep(0.02)


async def test_a_mail_at_which_the_server_breaks_off_holds_up_no_other(
    config: Config, dsn: Dsn, start_server: StartServer, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 3600)

    async def drop_one(server: SMTP, envelope: Envelope) -> str:
        return await (drop if "ada7@example.org" in envelope.rcpt_tos else accept)(server, envelope)

    smtp.answer = drop_one
    fill(dsn, 300)
    async with smtp.listening():
        await start_server(with_smtp(config, smtp))
        await smtp.count(299)
        async with asyncio.timeout(60):
            while [tries for tries, _ in waiting(dsn)] != [1]:
                await asyncio.sleep(0.02)


async def test_after_a_day_a_mail_is_given_up_with_an_event(
    config: Config, dsn: Dsn, start_server: StartServer, smtp: SmtpServer
) -> None:
    smtp.answer = refuse
    fill(dsn, 1)
    rows(dsn, "UPDATE gatepost.outbox SET created_at = created_at - interval '25 hours' RETURNING 1")
    async with smtp.listening():
        client = await start_server(with_smtp(config, smtp))
        async with asyncio.timeout(60):
            while waiting(dsn):
                await asyncio.sleep(0.02)
    assert rows(dsn, "SELECT kind, detail->>'mail', detail->>'error' FROM gatepost.events") == [
        ("mail_given_up", "password_changed", "451 try again later")
    ]
    async with client.get("/metrics") as answer:
        assert 'gatepost_mails_total{outcome="given_up"} 1.0' in await answer.text()


async def test_a_day_of_a_server_that_is_away_gives_up_too(config: Config, dsn: Dsn, smtp: SmtpServer) -> None:
    async with smtp.listening():
        pass
    fill(dsn, 2)
    rows(
        dsn,
        "UPDATE gatepost.outbox SET created_at = created_at - interval '25 hours' WHERE address = 'ada1@example.org' "
        "RETURNING 1",
    )
    async with sender(with_smtp(config, smtp), dsn) as one:
        await one.send_due()
        assert (one.given_up, len(waiting(dsn))) == (1, 1)


async def test_a_mail_keeps_its_message_id_at_every_try(
    config: Config, dsn: Dsn, start_server: StartServer, smtp: SmtpServer
) -> None:
    tried: list[bytes] = []

    async def refuse_three_times(_server: SMTP, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        tried.append(next(line for line in envelope.content.splitlines() if line.startswith(b"Message-ID")))
        return "250 OK" if len(tried) > 3 else "451 later"

    smtp.answer = refuse_three_times
    fill(dsn, 1)
    async with smtp.listening():
        await start_server(with_smtp(config, smtp))
        await smtp.count(1)
    assert len(tried) == 4
    assert len(set(tried)) == 1


async def test_a_mail_that_is_accepted_while_the_database_is_away_is_not_sent_again(
    config: Config, dsn: Dsn, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(dsn, 1)
    async with smtp.listening(), sender(with_smtp(config, smtp), dsn) as one:
        finish = one._finish
        failed = False

        async def fail_once(ids: list[str]) -> None:
            nonlocal failed
            if not failed:
                failed = True
                raise DatabaseUnavailable
            await finish(ids)

        monkeypatch.setattr(one, "_finish", fail_once)
        with pytest.raises(DatabaseUnavailable):
            await one.send_due()
        rows(dsn, "UPDATE gatepost.outbox SET due_at = now() RETURNING 1")  # as if its time were up
        await one.send_due()
        assert (len(smtp.received), waiting(dsn)) == (1, [])


async def test_two_processes_send_a_thousand_mails_once_each(config: Config, dsn: Dsn, smtp: SmtpServer) -> None:
    fill(dsn, 1000)
    async with smtp.listening():
        settings = with_smtp(config, smtp)
        async with sender(settings, dsn) as one, sender(settings, dsn) as two:
            while waiting(dsn):
                await asyncio.gather(one.send_due(), two.send_due())
            assert one.sent + two.sent == 1000
            assert min(one.sent, two.sent) > 0
    assert len({mail.recipients[0] for mail in smtp.received}) == len(smtp.received) == 1000


def test_what_was_accepted_before_a_kill_is_sent_by_the_next_process(dsn: Dsn, tmp_path: Path) -> None:
    variables = {**environment_of(dsn), **OPEN, "GATEPOST_MAIL__FROM_ADDRESS": "accounts@example.org"}
    down = {"GATEPOST_MAIL__HOST": "127.0.0.1", "GATEPOST_MAIL__PORT": "1", "GATEPOST_MAIL__SECURITY": "none"}
    with running(tmp_path, **variables, **down) as process:
        body = {"username": "ada", "password": PASSWORD, "email": "ada@example.org"}
        assert httpx.post(f"{process.url}/account", json=body).status_code == 201
        process.popen.kill()
        process.popen.wait()
    rows(dsn, "UPDATE gatepost.outbox SET due_at = least(due_at, now()) RETURNING 1")
    folder = tmp_path / "mail"
    with running(tmp_path, **variables, GATEPOST_MAIL__DIRECTORY=str(folder)):
        mail = asyncio.run(Folder(folder).receive("ada@example.org"))
    assert mail.subject == "Confirm your mail address for Gatepost"


async def test_what_is_on_its_way_when_the_process_ends_is_sent_to_its_end(
    config: Config, dsn: Dsn, smtp: SmtpServer
) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(_server: SMTP, _envelope: Envelope) -> str:
        arrived.set()
        await go_on.wait()
        return "250 OK"

    smtp.answer = slowly
    fill(dsn, 1)
    async with smtp.listening(), sender(with_smtp(config, smtp), dsn) as one:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(one.running())
            await arrived.wait()
            asyncio.get_running_loop().call_later(0.2, go_on.set)
        assert (len(smtp.received), waiting(dsn)) == (1, [])
