"""The operators' pages: who may see them, what they do, and what the overview counts."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientSession, CookieJar
from aiohttp.test_utils import TestClient

from gatepost.config import Config, WebServerConfig
from gatepost.pages import feature
from gatepost.pages.operator import queries
from gatepost.pages.operator.charts import HEIGHT, WIDTH, chart
from gatepost.pages.operator.overview import SPANS
from gatepost.postgres.database import Database, Dsn
from gatepost.routes import OPERATOR_PAGES
from gatepost.server import WebServer
from gatepost.sessions.guard import LOOKUP
from tests.conftest import (
    PASSWORD,
    Client,
    ProductionServer,
    StartServer,
    eventually,
    log_in,
    register,
    rows,
    with_mail,
)
from tests.received_mail import Folder
from tests.test_factors import grow_stale
from tests.visitor import SAME_ORIGIN, Visitor


@pytest.fixture
async def operator(client: Client, dsn: Dsn) -> Visitor:
    await register(client, "grace")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' RETURNING 1")
    return Visitor(client, await log_in(client, "grace"))


@pytest.fixture
async def ada_id(client: Client, dsn: Dsn) -> str:
    await register(client, "ada")
    found: str = rows(dsn, "SELECT id::text FROM gatepost.users WHERE username = 'ada'")[0][0]
    return found


async def test_nobody_but_an_operator_sees_them(client: Client, ada_id: str) -> None:
    visitor = Visitor(client, await log_in(client))
    for route in OPERATOR_PAGES:
        path = route.path.replace("{id}", ada_id).replace("{handle}", ada_id)
        page = await (visitor.get(path) if route.method == "GET" else visitor.post(path, {}))
        assert (page.status, page.title) == (403, "This is not for you"), path
        assert "“admin”" in page.html
    assert "/operator" not in (await visitor.get("/me")).html


async def test_a_page_looks_its_visitor_up_once_however_many_handlers_it_asks(
    operator: Visitor, ada_id: str, client: Client
) -> None:
    lookup = client.app[LOOKUP]
    before = lookup.tokens
    assert (await operator.get(f"/operator/users/{ada_id}")).title == "ada"
    assert lookup.tokens == before + 1


async def test_an_operator_finds_a_user_and_changes_everything(
    operator: Visitor, ada_id: str, client: Client
) -> None:
    await log_in(client)
    page = await operator.get("/operator/users?prefix=AD")
    assert [each.attrib["href"] for each in page.all("a") if ada_id in each.attrib["href"]] == [
        f"/operator/users/{ada_id}"
    ]
    at = f"/operator/users/{ada_id}"
    page = await operator.get(at)
    assert page.title == "ada"
    kinds = [each.attrib["href"] for each in page.all("a") if "kind=" in each.attrib["href"]]
    assert kinds == ["/operator/events?kind=authn_login_success", "/operator/events?kind=user_created"]
    page = await operator.send(page.form(f"{at}/roles"), roles="staff, editor")
    assert page.form(f"{at}/roles").fields["roles"] == "editor staff"
    page = await operator.send(page.form(f"{at}/username"), username="countess")
    assert page.title == "countess"
    page = await operator.send(page.form(f"{at}/profile"), profile='{"name": "Ada", "x": {"y": 1}}')
    assert json.loads(page.text_of("textarea")[0]) == {"name": "Ada", "x": {"y": 1}}
    page = await operator.send(
        page.form(f"{at}/profile"), profile='{"name": "Ada"}', before='{"name": "Ada", "x": {"y": 1}}'
    )
    assert json.loads(page.text_of("textarea")[0]) == {"name": "Ada"}
    page = await operator.send(page.form(f"{at}/disable"))
    assert page.notice == "The user is disabled, and every session has ended."
    page = await operator.send(page.form(f"{at}/enable"))
    assert page.notice == "The user is enabled."
    page = await operator.send(page.form(f"{at}/unlock"))
    assert page.notice == "The user can try again at once."
    page = await operator.send(page.form(f"{at}/reset"))
    code = page.text_of("p", **{"class": "codes"})[0]
    other = Visitor(client)
    page = await other.post("/recover/code", {"code": code, "new": "a new battery horse"})
    assert page.notice == "Your password has been changed. Every other session has ended."
    page = await other.sign_in("countess", "a new battery horse")
    assert page.title == "My account"
    page = await operator.get(at)
    end = next(form for form in page.forms if form.action.endswith("/end") and form.action != f"{at}/sessions/end")
    assert (await operator.send(end)).notice == "The session has ended."
    await other.sign_in("countess", "a new battery horse")
    page = await operator.get(at)
    assert (await operator.send(page.form(f"{at}/sessions/end"))).notice == "All sessions of the user have ended."
    page = await operator.send(page.form(f"{at}/delete"))
    assert (page.path, page.notice) == ("/operator/users?done=user_deleted", "The user has been deleted.")


@pytest.mark.parametrize("profile", ["{", "[]", "1", "[" * 5000, '{"a": 1, "a": 2}'])
async def test_a_profile_that_is_none_is_said_so_at_its_field(operator: Visitor, ada_id: str, profile: str) -> None:
    page = await operator.get(f"/operator/users/{ada_id}")
    page = await operator.send(page.form(f"/operator/users/{ada_id}/profile"), profile=profile)
    assert (page.status, page.errors) == (422, {"profile": "This cannot be used here."})
    assert page.text_of("textarea") == [profile]


async def test_an_operator_adds_a_user_and_hands_over_the_code(operator: Visitor, client: Client) -> None:
    page = await operator.get("/operator/new-user")
    page = await operator.send(page.form("/operator/new-user"), username="grace")
    assert page.errors == {"username": "Somebody has this username already."}
    page = await operator.send(page.form("/operator/new-user"), username="bob", roles="staff")
    code = page.text_of("p", **{"class": "codes"})[0]
    page = await Visitor(client).post("/recover/code", {"code": code, "new": "a new battery horse"})
    assert page.notice is not None
    assert (await Visitor(client).sign_in("bob", "a new battery horse")).title == "My account"


async def test_what_an_operator_does_asks_for_a_confirmation_too(operator: Visitor, ada_id: str, dsn: Dsn) -> None:
    grow_stale(dsn)
    at = f"/operator/users/{ada_id}"
    page = await operator.send((await operator.get(at)).form(f"{at}/roles"), roles="staff")
    assert page.problem == "Please confirm that it is still you."
    assert page.form(f"{at}/roles").fields["roles"] == "staff"
    page = await operator.send(page.form(f"{at}/roles"), confirm_password=PASSWORD)
    assert (page.notice, page.form(f"{at}/roles").fields["roles"]) == ("Saved.", "staff")


async def test_a_user_who_is_not_there_is_a_page_that_says_so(operator: Visitor, ada_id: str) -> None:
    page = await operator.get(f"/operator/users/{ada_id[:-4]}0000")
    assert (page.status, page.problem) == (404, "There is no such page.")


@pytest.mark.parametrize("path", ["users?prefix=%00", "events?kind=%00", "events.csv?kind=%00", "events.csv?user=x"])
async def test_what_no_filter_can_be_is_no_500(operator: Visitor, path: str) -> None:
    page = await operator.get(f"/operator/{path}")
    assert page.status in (400, 422)
    assert page.problem


async def test_a_file_can_be_asked_for_without_its_content(operator: Visitor, client: Client) -> None:
    cookie = {"Cookie": f"session={operator.cookies['session']}"}
    for kind in ("csv", "jsonl"):
        answer = await client.head(f"/operator/events.{kind}", headers=cookie)
        assert (answer.status, await answer.read()) == (200, b"")
    assert (await operator.get("/operator")).status == 200


@pytest.mark.parametrize("path", ["users?role=" + "x" * 65, "users?cursor=x", "events?user=x", "events?kind=A"])
async def test_a_filter_that_cannot_be_is_told_on_the_page(operator: Visitor, path: str) -> None:
    page = await operator.get(f"/operator/{path}")
    assert (page.status, page.problem) == (422, "Please look at what is marked below.")
    assert page.forms


async def test_events_are_found_and_taken_along(operator: Visitor, client: Client, ada_id: str) -> None:
    await Visitor(client).sign_in("ada", "not that one, really")
    page = await operator.get(f"/operator/events?user={ada_id}&from=2026-01-01T00:00&kind=authn_login_fail")
    assert page.text_of("strong") == ["authn_login_fail"]
    cookie = {"Cookie": f"session={operator.cookies['session']}"}
    answer = await client.get(f"/operator/events.jsonl?user={ada_id}", headers=cookie)
    assert answer.headers["Content-Disposition"] == 'attachment; filename="events.jsonl"'
    assert [json.loads(line)["kind"] for line in (await answer.text()).splitlines()] == [
        "authn_login_fail",
        "user_created",
    ]
    answer = await client.get(f"/operator/events.csv?kind=user_created&user={ada_id}", headers=cookie)
    (row,) = csv.DictReader(io.StringIO(await answer.text()))
    assert (row["kind"], row["user_id"], row["ip"]) == ("user_created", ada_id, "127.0.0.1")


async def test_a_file_holds_more_events_than_are_read_at_once(operator: Visitor, client: Client, dsn: Dsn) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.events (kind, user_agent) "
        "SELECT 'mail_given_up', n::text FROM generate_series(1, 1234) n RETURNING 1",
    )
    cookie = {"Cookie": f"session={operator.cookies['session']}"}
    answer = await client.get("/operator/events.jsonl?kind=mail_given_up", headers=cookie)
    found = [json.loads(line)["user_agent"] for line in (await answer.text()).splitlines()]
    assert sorted(map(int, found)) == list(range(1, 1235))


@pytest.mark.parametrize(
    "end",
    [
        "UPDATE gatepost.users SET epoch = epoch + 1 RETURNING 1",
        "UPDATE gatepost.users SET roles = '{}' WHERE username = 'grace' RETURNING 1",
    ],
    ids=["signed out", "no operator"],
)
async def test_a_file_ends_with_the_right_to_see_it(
    operator: Visitor, client: Client, ada_id: str, dsn: Dsn, end: str
) -> None:
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' RETURNING 1")  # somebody has to stay one
    rows(
        dsn,
        "INSERT INTO gatepost.events (kind, user_agent) "
        "SELECT 'mail_given_up', repeat('x', 400) FROM generate_series(1, 50000) RETURNING 1",
    )
    cookie = {"Cookie": f"session={operator.cookies['session']}"}
    answer = await client.get("/operator/events.jsonl?kind=mail_given_up", headers=cookie)
    await answer.content.readline()
    rows(dsn, end)
    with pytest.raises(ClientPayloadError):
        await answer.read()


@pytest.mark.parametrize("agent", ["=1+1", "+1", "-1", "@x"])
async def test_no_cell_of_a_table_is_a_formula(operator: Visitor, client: Client, dsn: Dsn, agent: str) -> None:
    rows(dsn, "INSERT INTO gatepost.events (kind, user_agent) VALUES ('mail_given_up', %s) RETURNING 1", agent)
    cookie = {"Cookie": f"session={operator.cookies['session']}"}
    answer = await client.get("/operator/events.csv?kind=mail_given_up", headers=cookie)
    (row,) = csv.DictReader(io.StringIO(await answer.text()))
    assert row["user_agent"] == "'" + agent


async def test_operators_have_their_pages_and_sign_in_on_an_address_of_their_own(config: Config, dsn: Dsn) -> None:
    server = WebServer(config.model_copy(update={"webserver": WebServerConfig(port=0, operator_port=0)}))
    await server.initializer()
    async with TestClient(ProductionServer(server)) as public:
        await register(public, "grace")
        rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' RETURNING 1")
        token = {"Cookie": f"session={await log_in(public, 'grace')}"}
        assert (await public.get("/operator", headers=token)).status == 404
        assert server.operators_port is not None
        async with ClientSession(
            f"http://127.0.0.1:{server.operators_port}", cookie_jar=CookieJar(unsafe=True)
        ) as own:
            answer = await own.get("/operator")
            assert answer.url.path == "/sign-in"
            fields = {"username": "grace", "password": PASSWORD, "return_to": "/operator"}
            answer = await own.post("/sign-in", data=fields, headers=SAME_ORIGIN)
            assert (answer.status, answer.url.path) == (200, "/operator")


async def test_a_user_is_invited_by_mail_and_later_mailed_a_code(
    config: Config, start_server: StartServer, dsn: Dsn, tmp_path: Path
) -> None:
    client, mails = await start_server(with_mail(config, tmp_path / "mail")), Folder(tmp_path / "mail")
    await register(client, "grace")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' RETURNING 1")
    operator = Visitor(client, await log_in(client, "grace"))
    page = await operator.get("/operator/new-user")
    page = await operator.send(page.form("/operator/new-user"), username="bob", email="bob@example.org")
    assert "Or let us write to bob@example.org" in page.html
    bob = next(each.attrib["href"] for each in page.all("a") if "/users/" in each.attrib["href"])
    page = await operator.send(page.form(f"{bob}/invite"))
    assert page.notice == "The invitation is on its way."
    mail = await mails.receive("bob@example.org", kind="Your account at")
    fields = {"code": mail.link("recovery"), "identifier": "", "new": "a new battery horse"}
    assert (await Visitor(client).post("/recover/code", fields)).path == "/sign-in?done=password_changed"
    page = await operator.get(bob)
    page = await operator.send(page.form(f"{bob}/mail-code"))
    assert page.notice == "A code is on its way to the user’s address."
    mail = await mails.receive("bob@example.org", kind="Choose a new password")
    fields = {"code": mail.typed, "identifier": "bob", "new": "yet another horse"}
    assert (await Visitor(client).post("/recover/code", fields)).path == "/sign-in?done=password_changed"
    page = await operator.send((await operator.get(bob)).form(f"{bob}/disable"))
    page = await operator.post(f"{bob}/invite", {})
    assert (page.status, page.problem) == (409, "This user is disabled, or has no verified address.")


# ------------------------------------------------------------------------------------------------- counts


def happen(dsn: Dsn, kind: str, ago: timedelta, number: int = 1) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.events (kind, at) "
        "SELECT %s, clock_timestamp() - %s FROM generate_series(1, %s) RETURNING 1",
        kind,
        ago,
        number,
    )


def count_from(dsn: Dsn, ago: timedelta) -> None:
    rows(
        dsn,
        "UPDATE gatepost.event_counts_until SET at = date_trunc('minute', clock_timestamp() - %s, 'UTC') RETURNING 1",
        ago,
    )


async def counted(database: Database, since: timedelta, unit: str = "day", span: str = "hour") -> dict[str, int]:
    found = await database.read(
        queries.counts,
        unit=unit,
        span=span,
        since=datetime.now(UTC) - since,
        kinds=["authn_login_fail", "user_created"],
    )
    totals: dict[str, int] = {}
    for _, kind, number in found:
        totals[kind] = totals.get(kind, 0) + number
    return totals


async def test_every_event_is_counted_once_however_often_and_from_wherever(database: Database, dsn: Dsn) -> None:
    for minutes in (0, 1, 5, 59, 61, 600, 60 * 24 * 20):
        happen(dsn, "authn_login_fail", timedelta(minutes=minutes), 3)
    happen(dsn, "user_created", timedelta(days=3))
    count_from(dsn, timedelta(days=31))
    for _ in range(3):
        await queries.count_all(database)
        assert await counted(database, timedelta(days=31)) == {"authn_login_fail": 21, "user_created": 1}
        assert await counted(database, timedelta(hours=2), "minute", "minute") == {"authn_login_fail": 15}
    happen(dsn, "authn_login_fail", timedelta())
    assert (await counted(database, timedelta(days=31)))["authn_login_fail"] == 22


async def test_what_is_counted_stays_when_its_events_have_gone(database: Database, dsn: Dsn) -> None:
    happen(dsn, "authn_login_fail", timedelta(days=2), 7)
    count_from(dsn, timedelta(days=31))
    await queries.count_all(database)
    rows(dsn, "DELETE FROM gatepost.events RETURNING 1")
    assert await counted(database, timedelta(days=31)) == {"authn_login_fail": 7}


async def test_while_one_node_counts_another_leaves_it_to_it(database: Database, dsn: Dsn) -> None:
    happen(dsn, "authn_login_fail", timedelta(hours=30), 100)
    count_from(dsn, timedelta(days=31))
    async with database.transaction() as connection:
        assert await queries.count_events(connection)
        assert not await database.write(queries.count_events)
    await queries.count_all(database)
    assert await counted(database, timedelta(days=31)) == {"authn_login_fail": 100}


async def test_old_counts_go(database: Database, dsn: Dsn) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.event_counts VALUES ('minute', now() - interval '4 hours', 'x', 1), "
        "('hour', now() - interval '63 days', 'x', 1), ('hour', now() - interval '61 days', 'x', 1) RETURNING 1",
    )
    count_from(dsn, timedelta(hours=1))
    await queries.count_all(database)
    assert rows(dsn, "SELECT span FROM gatepost.event_counts WHERE kind = 'x'") == [("hour",)]


def test_the_overview_reads_of_a_months_events_only_those_that_are_not_counted_yet(dsn: Dsn) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.events (kind, at) SELECT 'authn_login_success', "
        "clock_timestamp() - interval '31 days' * n / 50000 FROM generate_series(0, 49999) AS n RETURNING 1",
    )
    count_from(dsn, timedelta(minutes=2))
    rows(dsn, "ANALYZE gatepost.events; SELECT 1")
    since = f"'{datetime.now(UTC) - timedelta(days=30)}'::timestamptz"
    given = {"unit": "'day'", "span": "'hour'", "since": since, "kinds": "'{authn_login_success,user_created}'"}
    ((plan,),) = rows(dsn, "EXPLAIN (ANALYZE, FORMAT JSON) " + queries._COUNTS.sql % given)

    def reads(node: dict[str, Any]) -> int:
        own = 0
        if node.get("Relation Name") == "events":
            own = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        return own + sum(map(reads, node.get("Plans", [])))

    assert reads(plan[0]["Plan"]) < 10, json.dumps(plan, indent=1)


def had_waited(dsn: Dsn, hashes: int, ago: timedelta) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.gauge_peaks SELECT span, date_trunc(span, clock_timestamp() - %s, 'UTC'), "
        "'hashes_waiting', %s FROM (VALUES ('minute'), ('hour')) AS spans (span) "
        "ON CONFLICT (span, at, name) DO NOTHING RETURNING 1",
        ago,
        hashes,
    )


def peaks(dsn: Dsn, name: str) -> dict[str, int]:
    """The highest of each span."""
    found = rows(dsn, "SELECT span, max(peak) FROM gatepost.gauge_peaks WHERE name = %s GROUP BY 1", name)
    return dict(found)


async def test_of_a_gauge_the_highest_value_is_kept(database: Database, dsn: Dsn) -> None:
    for waiting, highest in ((3, 3), (9, 9), (5, 9), (0, 9)):
        await database.write(queries.record_gauges, waiting)
        assert peaks(dsn, "hashes_waiting") == {"minute": highest, "hour": highest}


async def test_old_peaks_go(database: Database, dsn: Dsn) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.gauge_peaks VALUES ('minute', now() - interval '4 hours', 'x', 1), "
        "('hour', now() - interval '63 days', 'x', 1), ('hour', now() - interval '61 days', 'x', 1) RETURNING 1",
    )
    await database.write(queries.record_gauges, 0)
    assert peaks(dsn, "x") == {"hour": 1}


async def test_the_server_keeps_how_many_sessions_there_were(
    config: Config, start_server: StartServer, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature, "RECORD", 0.05)
    client = await start_server(config)
    await register(client, "ada")
    await log_in(client)
    await eventually(lambda: peaks(dsn, "live_sessions") != {})


async def test_the_overview_shows_what_was_and_what_is_wrong(operator: Visitor, client: Client, dsn: Dsn) -> None:
    for _ in range(3):
        await Visitor(client).sign_in("grace", "not that one, really")
    had_waited(dsn, 2000, timedelta(hours=2))
    had_waited(dsn, 7, timedelta(minutes=2))
    page = await operator.get("/operator")
    assert page.notice is None
    assert page.text_of("p", **{"class": "notice"}) == ["All is well."]
    assert page.text_of("h2") == [span.title for span in SPANS]
    labels = [each.attrib["aria-label"] for each in page.all("svg")]
    assert labels[::5] == ["Sign-ins: 1 succeeded, 3 failed"] * 3
    assert labels[2::5] == ["New users: 1"] * 3
    assert labels[4::5] == [
        "Hashes waiting: at most 7",
        "Hashes waiting: at most 2,000",
        "Hashes waiting: at most 2,000",
    ]
    count_from(dsn, timedelta(hours=1))
    page = await operator.get("/operator")
    assert page.text_of("li")[-1] == "Events of more than ten minutes are not counted yet."


def test_bars_stand_side_by_side_and_on_top_of_each_other() -> None:
    begin, step = datetime(2026, 1, 1, tzinfo=UTC), timedelta(hours=1)
    drawn = chart([{begin: 3, begin + step: 1}, {begin: 1}, {begin - step: 9}], begin, step, 4)
    assert drawn.totals == [4, 1, 0]
    assert drawn.most == 4
    assert [(bar.x, bar.y, bar.height, bar.series) for bar in drawn.bars] == [
        (0, HEIGHT / 4, HEIGHT * 3 / 4, 0),
        (0, 0, HEIGHT / 4, 1),
        (WIDTH / 4, HEIGHT * 3 / 4, HEIGHT / 4, 0),
    ]
    assert chart([{}], begin, step, 4).bars == []
