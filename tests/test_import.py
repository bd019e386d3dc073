"""`gatepost user import` and `export`, run as an operator runs them."""

import base64
import contextlib
import csv
import io
import itertools
import json
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import RFC_4122, UUID

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatepost.config import Config
from gatepost.postgres import blocking
from gatepost.postgres.database import Dsn
from gatepost.security import names
from gatepost.transfer import importing, lines, queries
from gatepost.transfer.lines import Record, Refusal, Source
from gatepost.transfer.users import ImportedUser, Judge
from tests.conftest import PASSWORD, Client, PostgresServer, StartServer, db_config, log_in, register, rows, with_mail
from tests.gatepost_process import environment, gatepost
from tests.test_imported_hashes import FAST, FIREBASE, FIREBASE_USER, MADE, TYPED, keycloak
from tests.test_server import environment_of

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(dsn: Dsn, tmp_path: Path) -> Run:
    def run(*arguments: str, stdin: str | None = None, to: Dsn = dsn) -> subprocess.CompletedProcess[str]:
        return gatepost("user", *arguments, cwd=tmp_path, stdin=stdin, **environment_of(to))

    return run


def jsonl(*users: dict[str, Any] | str) -> str:
    return "".join((user if isinstance(user, str) else json.dumps(user)) + "\n" for user in users)


def usernames(dsn: Dsn) -> list[str]:
    return [name for (name,) in rows(dsn, "SELECT username FROM gatepost.users ORDER BY canonical")]


async def test_every_kind_of_hash_is_imported_and_signs_in(run: Run, client: Client, dsn: Dsn) -> None:
    people = [{"username": f"User{n}", "hash": text} for n, text in enumerate(MADE.values())]
    done = run("import", "-", stdin=jsonl(*people))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(MADE)} users added, 0 were there already, 0 lines refused.\n"
    for person in people:
        await log_in(client, person["username"].upper(), TYPED)


async def test_everything_about_a_user_comes_along_and_each_has_an_event(run: Run, dsn: Dsn, tmp_path: Path) -> None:
    ada = {
        "id": "3f0c8a52-7c53-4a80-9d4e-9a5a3f1f6a01",
        "username": "Ada",
        "hash": MADE["bcrypt 2b"],
        "roles": ["admin", "staff"],
        "profile": {"name": "Ada \\ L\t\n", "nested": {"ü": [1, None]}},
        "created": "2020-02-29T12:00:00+02:00",
        "disabled": "2021-01-01T00:00:00Z",
    }
    (tmp_path / "users.jsonl").write_text(jsonl(ada, {"username": "bob"}), "utf-8")
    assert run("import", "users.jsonl").returncode == 0
    found = rows(
        dsn,
        "SELECT id::text, username, roles, profile, created_at = '2020-02-29 10:00Z', "
        "disabled_at = '2021-01-01 00:00Z' FROM gatepost.users ORDER BY canonical",
    )
    assert found[0] == (ada["id"], "Ada", ["admin", "staff"], ada["profile"], True, True)
    assert found[1][1:4] == ("bob", [], {})
    assert rows(dsn, "SELECT count(*) FROM gatepost.passwords") == [(1,)]
    assert rows(dsn, "SELECT kind, count(DISTINCT user_id) FROM gatepost.events GROUP BY 1") == [("user_imported", 2)]


def test_csv_is_taken_too(run: Run, dsn: Dsn, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text(
        "\ufeffusername,hash,roles,profile,created\r\n"
        'ada,"' + MADE["PHC argon2i"] + '",admin staff,"{""a"":\n""xy""}",2020-01-01T00:00:00Z\r\n'
        "bob,,,,\r\n"
        "eve,,,[],\r\n"
        "too,few\r\n"
        'mallory,,,"{""a"":1,""a"":2}",\r\n',
        "utf-8",
        newline="",
    )
    done = run("import", "users.csv")
    assert done.returncode == 1
    assert rows(dsn, "SELECT username, roles, profile FROM gatepost.users ORDER BY 1") == [
        ("ada", ["admin", "staff"], {"a": "xy"}),
        ("bob", [], {}),
    ]
    assert done.stderr.splitlines() == [
        "line 5: profile: must be an object",
        "line 6: the line has 2 fields instead of 5",
        "line 7: profile: A key occurs twice in one object.",
    ]


@pytest.mark.parametrize(
    ("lines", "said", "taken"),
    [
        (['eve,"{'], ["line 3: the line is not CSV: a row has at most 100 lines"], 20_000),
        (
            ['eve,"{', 'bob,"{""a"":1}"'],
            ["line 3: the line is not CSV: ',' expected after '\"'; its quote reaches line 4"],
            20_001,
        ),
        (["\udcff", "a b,"], ["line 3: the line is not UTF-8", "line 4: username: must not contain SPACE"], 20_000),
        (['eve,"{', "\udcff", '}"'], ["line 4: the line is not UTF-8"], 20_000),
        (["x" * 70_000, 'eve,"'], ["line 3: the line has more than", "line 4: the line is not CSV: a row"], 20_000),
    ],
)
def test_a_line_that_is_no_csv_costs_no_line_after_it(lines: list[str], said: list[str], taken: int) -> None:
    text = "\n".join(["username,profile", "ada,", *lines, *(f"user{n}," for n in range(19_999))])
    records = list(Source(io.BytesIO(text.encode("utf-8", "surrogateescape")), "csv").records())
    judged = [Judge()(record) if isinstance(record, Record) else record for record in records]
    refused = [f"line {one.line}: {one.reason}" for one in judged if isinstance(one, Refusal)]
    assert [line[: len(begin)] for line, begin in zip(refused, said, strict=True)] == said
    assert len(judged) - len(refused) == taken


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_quote_that_is_open_at_the_end_costs_only_its_own_line(end: str) -> None:
    text = 'username,hash\nada,\nbob,"$2b\neve,\n\nmax,' + end
    found = [(one.line, isinstance(one, Record)) for one in Source(io.BytesIO(text.encode()), "csv").records()]
    assert found == [(2, True), (3, False), (4, True), (6, True)]


REFUSED = [
    ("{", "the line is not JSON"),
    ("[]", "not a JSON object"),
    ('{"username": "a", "username": "b"}', "key occurs twice"),
    ('{"username": "a", "profile": {"n": NaN}}', "not finite"),
    ('{"username": "a\\u0000b"}', "U+0000"),
    ('{"username": "a", "pasword": "x"}', "there is no key 'pasword'"),
    ('{"username": ""}', "username: must not be empty"),
    ('{"username": 7}', "username: must be a string"),
    ('{"username": "a b"}', "username: must not contain SPACE"),
    ('{"username": "a", "roles": "admin"}', "roles: must be a list"),
    ('{"username": "a", "roles": ["a,b"]}', "roles: each must be"),
    ('{"username": "a", "profile": {"a": "' + "x" * 4096 + '"}}', "profile: must have at most 4096"),
    ('{"username": "a", "profile": {"a": [' + "1e90," * 50 + "1]}}", "profile: must have at most 4096"),
    ('{"username": "a", "created": "yesterday"}', "created: must be a time"),
    ('{"username": "a", "created": "2020-01-01T00:00:00"}', "time zone"),
    ('{"username": "a", "created": "0001-01-01T00:00:00+05:00"}', "created: must lie in the years 1 to 9999"),
    ('{"username": "a", "disabled": "9999-12-31T23:59:59-05:00"}', "disabled: must lie in the years 1 to 9999"),
    ('{"username": "a", "id": "7"}', "id: must be a UUID"),
    ('{"username": "a", "id": "00000000-0000-0000-0000-000000000000"}', "and not the nil UUID"),
    ('{"username": "a", "hash": "md5"}', "hash: not a kind"),
    ('{"username": "a", "hash": "$2b$31$' + "A" * 53 + '"}', "hash: bcrypt's rounds must be 4 to 14"),
    ('{"username": "a", "hash": "x", "salt": "y"}', "salt: is Firebase's"),
    (json.dumps({"username": "a", "hash": MADE["bcrypt 2b"], "pepper": "9"}), "pepper: is not among"),
    ("x" * 70_000, "the line has more than 65536 bytes"),
]


def test_refused_lines_are_named_with_the_reason_and_the_others_are_imported(
    run: Run, dsn: Dsn, tmp_path: Path
) -> None:
    text = jsonl({"username": "first"}, *(line for line, _ in REFUSED), {"username": "last"})
    done = run("import", "-", "--report", "report.txt", stdin=text)
    assert done.returncode == 1
    assert done.stdout == f"2 users added, 0 were there already, {len(REFUSED)} lines refused.\n"
    report = (tmp_path / "report.txt").read_text().splitlines()
    for number, ((_, why), said) in enumerate(zip(REFUSED, report, strict=True), 2):
        assert said.startswith(f"{number}: ")
        assert why in said
    assert usernames(dsn) == ["first", "last"]


def test_many_refused_lines_do_not_flood_the_terminal(run: Run) -> None:
    done = run("import", "-", stdin="{\n" * 500)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 21
    assert "480 more refused lines" in done.stderr


def test_names_that_are_compared_alike_are_refused_wherever_the_other_stands(
    run: Run, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("import", "-", stdin=jsonl({"username": "Ada"}, {"username": "bob"}))
    filler = [{"username": f"filler{n}"} for n in range(importing.BATCH)]
    done = run(
        "import",
        "-",
        stdin=jsonl({"username": "ADA"}, {"username": "eve"}, {"username": "Eve"}, *filler, {"username": "eve"}),
    )
    assert done.stderr.splitlines() == [
        "line 1: username: is taken by a user who writes it otherwise",
        "line 3: username: an earlier line has this name, or one that is compared like it",
        f"line {importing.BATCH + 4}: username: an earlier line has this name, or one that is compared like it",
    ]
    assert usernames(dsn)[:2] == ["Ada", "bob"]


def test_a_second_run_leaves_alone_who_is_there(run: Run, dsn: Dsn) -> None:
    text = jsonl({"username": "ada", "hash": MADE["bcrypt 2b"]}, {"username": "bob"})
    run("import", "-", stdin=jsonl({"username": "ada", "hash": MADE["bcrypt 2b"]}))
    rows(dsn, "UPDATE gatepost.users SET profile = '{\"kept\": true}'")
    done = run("import", "-", stdin=text)
    assert (done.returncode, done.stdout) == (0, "1 users added, 1 were there already, 0 lines refused.\n")
    assert rows(dsn, "SELECT profile FROM gatepost.users WHERE canonical = 'ada'") == [({"kept": True},)]
    assert rows(dsn, "SELECT count(*) FROM gatepost.events") == [(2,)]


def test_a_dry_run_says_what_would_be_and_changes_nothing(run: Run, dsn: Dsn) -> None:
    run("import", "-", stdin=jsonl({"username": "there"}))
    text = jsonl({"username": "there"}, {"username": "a"}, {"username": "A"}, {"username": "THERE"}, "{")
    done = run("import", "-", "--dry-run", stdin=text)
    assert done.returncode == 1
    assert done.stdout == "1 users would be added, 1 were there already, 3 lines would be refused.\n"
    assert usernames(dsn) == ["there"]


def test_a_row_that_only_postgres_refuses_is_found_and_the_others_are_imported(run: Run, dsn: Dsn) -> None:
    rows(dsn, "ALTER TABLE gatepost.users ADD CHECK (canonical <> 'user37')")
    done = run("import", "-", stdin=jsonl(*({"username": f"user{n}"} for n in range(100))))
    assert done.returncode == 1
    assert done.stderr.startswith("line 38: the database refuses it (")
    assert len(usernames(dsn)) == 99


def test_an_id_that_another_user_has_is_refused(run: Run, dsn: Dsn) -> None:
    one = {"id": "3f0c8a52-7c53-4a80-9d4e-9a5a3f1f6a01", "username": "ada"}
    run("import", "-", stdin=jsonl(one))
    done = run("import", "-", stdin=jsonl(one | {"username": "eve"}))
    assert done.stderr == "line 1: id: another user has it\n"


def test_lines_of_one_id_are_one_user_the_first_and_no_other_lines_password_is_theirs(run: Run, dsn: Dsn) -> None:
    ids = [f"{n}f0c8a52-7c53-4a80-9d4e-9a5a3f1f6a01" for n in range(3)]
    text = jsonl(
        {"id": ids[0], "username": "ada"},
        {"id": ids[0], "username": "eve", "hash": MADE["bcrypt 2b"]},
        {"id": ids[1], "username": "bob"},
        {"id": ids[1], "username": "bob"},
        {"id": ids[2], "username": "Ada"},
        {"id": ids[2], "username": "max", "hash": MADE["bcrypt 2b"]},
    )
    refused = [
        "line 2: id: another user has it",
        "line 4: username: an earlier line has this name, or one that is compared like it",
        "line 5: username: an earlier line has this name, or one that is compared like it",
    ]
    tried, done = (run("import", "-", *options, stdin=text) for options in (["--dry-run"], []))
    assert tried.stderr.splitlines() == done.stderr.splitlines() == refused
    assert tried.stdout == "3 users would be added, 0 were there already, 3 lines would be refused.\n"
    assert done.stdout == "3 users added, 0 were there already, 3 lines refused.\n"
    assert usernames(dsn) == ["ada", "bob", "max"]
    assert rows(dsn, "SELECT username FROM gatepost.passwords JOIN gatepost.users ON id = user_id") == [("max",)]


def test_who_brings_no_id_gets_a_uuid_of_version_7() -> None:
    judge, before = Judge(), time.time_ns() // 1_000_000
    judged = [judge(Record(line, {"username": "ada"})) for line in range(1000)]
    ids = {UUID(user.id) for user in judged if isinstance(user, ImportedUser)}
    assert len(ids) == 1000
    assert {(id_.version, id_.variant) for id_ in ids} == {(7, RFC_4122)}
    assert before <= min(ids).int >> 80 <= max(ids).int >> 80 <= time.time_ns() // 1_000_000


async def test_firebases_users_are_imported_with_the_projects_parameters(
    run: Run, client: Client, dsn: Dsn, tmp_path: Path
) -> None:
    import base64

    (tmp_path / "key").write_text(base64.b64encode(FIREBASE.signer_key).decode() + "\n")
    text, salt = FIREBASE_USER
    options = ["--firebase-signer-key-file", "key", "--firebase-salt-separator", "Bw==", "--firebase-mem-cost", "14"]
    done = run("import", "-", *options, stdin=jsonl({"username": "ada", "hash": text, "salt": salt}))
    assert (done.returncode, done.stderr) == (0, "")
    await log_in(client, "ada", "user1password")
    too_dear = run("import", "-", *options[:-1], "18", stdin=jsonl({"username": "b", "hash": text, "salt": salt}))
    assert "N must be at most 2^17" in too_dear.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["import", "users"], "cannot be read"),
        (["import", "-", "--format", "xml"], "say what it is"),
        (["import", "-", "--firebase-signer-key-file", "nowhere"], "nowhere: cannot be read"),
        (["export", "--output", "no/where"], "no/where: cannot be created"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], said: str) -> None:
    done = run(*arguments, stdin="")
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_database_that_lets_nothing_be_written_stops_an_import_in_one_line(run: Run, dsn: Dsn) -> None:
    rows(dsn, f'ALTER DATABASE "{dsn.database}" SET default_transaction_read_only = on')
    done = run("import", "-", stdin=jsonl({"username": "ada"}))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (
        "cannot execute CREATE TABLE in a read-only transaction) after 0 users: run the import again" in done.stderr
    )


def test_an_export_that_breaks_off_is_one_line_that_says_so(run: Run, dsn: Dsn) -> None:
    rows(dsn, f"ALTER DATABASE \"{dsn.database}\" SET lock_timeout = '1ms'")
    with psycopg2.connect(**dsn.parameters(dsn.hosts[0])) as other:
        other.cursor().execute("LOCK gatepost.users")
        done = run("export")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "canceling statement due to lock timeout) after 0 users: the export is not whole" in done.stderr


def test_a_full_disk_ends_an_export_with_one_line_and_a_closed_pipe_with_none(
    run: Run, dsn: Dsn, tmp_path: Path
) -> None:
    run("import", "-", stdin=jsonl(*({"username": f"user{n}"} for n in range(2000))))

    def export(into: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", f"{sys.executable} -m gatepost user export {into}"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment(**environment_of(dsn)), capture_output=True, text=True, check=False
        )

    full = export("> /dev/full")
    assert (full.returncode, full.stderr.count("\n")) == (1, 1)
    assert "cannot be written: No space left on device: the export is not whole" in full.stderr
    enough = export("| head -n 1")
    assert (enough.stdout.count("\n"), enough.stderr) == (1, "")


def test_a_csv_without_its_header_is_refused_as_a_whole(run: Run, dsn: Dsn) -> None:
    text = f"username,{MADE['bcrypt 2b']},\nbob,,\n"
    done = run("import", "-", "--format", "csv", stdin=text)
    assert done.returncode == 1
    assert "its first line must name the columns; number 2 is none of created, disabled, email," in done.stderr
    assert "$2b$" not in done.stderr
    assert usernames(dsn) == []


async def test_an_export_is_imported_elsewhere_and_every_login_goes_on_working(
    run: Run, client: Client, config: Config, start_server: StartServer, postgres: PostgresServer, template: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    await register(client, "ours")
    people = [{"username": f"user{n}", "hash": text} for n, text in enumerate(MADE.values())]
    numbers = {"numbers": [1e90] * 40 + [1e308, -1e-308, 10**308, 0.1]}
    run("import", "-", stdin=jsonl(*people, {"username": "nobody", "roles": ["staff"], "profile": numbers}))
    exported = run("export", "--output", "all.jsonl")
    assert (exported.returncode, exported.stdout) == (0, "")
    assert stat.S_IMODE((tmp_path / "all.jsonl").stat().st_mode) == 0o600
    assert run("export", "--output", "all.jsonl").returncode == 1  # never over another file
    with postgres.database(template) as elsewhere:
        assert run("import", "all.jsonl", to=elsewhere).returncode == 0
        other = await start_server(config.model_copy(update={"db": db_config(elsewhere)}))
        await log_in(other, "ours", PASSWORD)
        again = run("export", to=elsewhere)
        assert sorted(again.stdout.splitlines()) == sorted((tmp_path / "all.jsonl").read_text().splitlines())
        for person in people:
            await log_in(other, person["username"], TYPED)
        await other.close()


async def test_a_hash_that_no_login_computes_stops_neither_the_start_nor_an_export(
    run: Run, dsn: Dsn, config: Config, start_server: StartServer
) -> None:
    run("import", "-", stdin=jsonl({"username": "ada", "hash": MADE["passlib scrypt"]}, {"username": "bob"}))
    rows(dsn, "UPDATE gatepost.passwords SET setting = '$scrypt$ln=16,r=1,p=1$AAAAAAAAAAAAAAAAAAAAAA'")
    exported = [json.loads(line) for line in run("export").stdout.splitlines()]
    assert [(user["username"], "hash" in user) for user in exported] == [("ada", False), ("bob", False)]
    client = await start_server(config)
    async with client.post("/user", json={"username": "ada", "password": TYPED}) as answer:
        assert answer.status == 401


def test_an_import_that_was_stopped_half_way_goes_on_when_it_is_run_again(
    dsn: Dsn, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gatepost.transfer.lines import Source
    from gatepost.transfer.users import Judge

    monkeypatch.setattr(importing, "BATCH", 10)
    text = jsonl(*({"username": f"user{n:02}"} for n in range(35)))
    (tmp_path / "users.jsonl").write_text(text)
    connection = blocking.connect(dsn)
    honest = queries.add

    def dies(*args: Any, **kwargs: Any) -> Any:
        if len(usernames(dsn)) == 20:
            with psycopg2.connect(**replace(dsn, database="postgres").parameters(dsn.hosts[0])) as admin:
                admin.cursor().execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        return honest(*args, **kwargs)

    monkeypatch.setattr(queries, "add", dies)
    with (
        (tmp_path / "users.jsonl").open("rb") as file,
        pytest.raises(importing.ImportStopped, match="after 20 users"),
    ):
        importing.Import(connection, Judge(), False, print, lambda *_: None).run(Source(file, "jsonl"))
    monkeypatch.setattr(queries, "add", honest)
    done = run("import", "users.jsonl")
    assert (done.returncode, done.stdout) == (0, "15 users added, 20 were there already, 0 lines refused.\n")


def test_names_are_stored_as_they_are_whatever_encoding_the_environment_asks_for(
    dsn: Dsn, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    assert run("import", "-", stdin=jsonl({"username": "zo\u00eb"})).returncode == 0
    assert usernames(dsn) == ["zo\u00eb"]
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1:backslashreplace")
    run("export", "--output", "a.jsonl")
    assert run("export").stdout == (tmp_path / "a.jsonl").read_text("utf-8")


def test_a_batch_is_small_in_memory_however_large_the_profiles_are(dsn: Dsn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH_BYTES", 50_000)
    line = len(jsonl({"username": "user00", "profile": {"about": "x" * 4000}}))
    text = jsonl(*({"username": f"user{n:02}", "profile": {"about": "x" * 4000}} for n in range(30)))
    ends = [0]
    with contextlib.closing(blocking.connect(dsn)) as connection:
        work = importing.Import(connection, Judge(), False, print, lambda _counts, position: ends.append(position))
        assert work.run(Source(io.BytesIO(text.encode()), "jsonl")).added == 30
    assert ends[-1] == len(text)
    assert max(end - begin for begin, end in itertools.pairwise(ends)) <= 50_000 + line


def test_an_import_ends_when_all_of_it_is_on_disk(dsn: Dsn) -> None:
    written: list[str] = []

    def advanced(_counts: importing.Counts, _position: int) -> None:
        written.append(rows(dsn, "SELECT pg_current_wal_insert_lsn()::text")[0][0])

    file = io.BytesIO(jsonl(*({"username": f"user{n}"} for n in range(1000))).encode())
    with contextlib.closing(blocking.connect(dsn)) as connection:
        work = importing.Import(connection, Judge(), False, lambda _refusal: None, advanced)
        assert work.run(Source(file, "jsonl")).added == 1000
        on_disk = rows(dsn, f"SELECT pg_current_wal_flush_lsn() >= '{written[-1]}'")
    assert on_disk == [(True,)]


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128))
@settings(deadline=None, max_examples=300)
def test_the_short_cut_for_plain_names_is_what_the_profiles_say(name: str) -> None:
    assert names.canonical(name) == names._mapped.enforce(name)
    assert names.display(name) == names._preserved.enforce(name)


def fed(text: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[Record | Refusal]]:
    """How many lines were given to the parser of CSV, again and again, and what came of them."""
    count = 0
    honest = csv.reader

    def reader(texts: Any, **options: Any) -> Any:
        def counted() -> Any:
            nonlocal count
            for line in texts:
                count += 1
                yield line

        return honest(counted(), **options)

    with monkeypatch.context() as patch:
        patch.setattr(csv, "reader", reader)
        found = list(Source(io.BytesIO(text), "csv").records())
    return count, found


@pytest.mark.parametrize("line", [b'a","\n', b'"\n', b'"a\n', b'a,"b\n'])
def test_lines_whose_quotes_are_not_closed_are_read_in_linear_time(
    monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    costs = []
    for count in (2000, 4000):
        cost, found = fed(b"username,hash\n" + line * count + b"bob,\n", monkeypatch)
        costs.append(cost)
        assert cost > count
        assert cost <= (lines.MAX_ROW_LINES + 1) * (count + 2)
        assert found[-1] == Record(count + 2, {"username": "bob", "roles": []})
    assert costs[1] <= 2.1 * costs[0]


def test_a_quote_that_is_not_closed_takes_in_no_more_memory_than_a_row(tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    with file.open("wb") as out:
        out.write(b'username,hash\n"')
        for _ in range(600):
            out.write(b"x" * 60_000 + b"\n")  # 36 MB
    with file.open("rb") as source:
        tracemalloc.start()
        refused = sum(isinstance(found, Refusal) for found in Source(source, "csv").records())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert refused == 600
    assert peak < 4 * 1024 * 1024


def test_a_profile_may_be_written_over_several_lines() -> None:
    text = 'username,profile\nada,"{""a"":\n1\n}"\n'
    assert list(Source(io.BytesIO(text.encode()), "csv").records()) == [
        Record(2, {"username": "ada", "profile": {"a": 1}, "roles": []})
    ]


# ---------------------------------------------------------------------------------------------- addresses


def addresses(dsn: Dsn) -> list[tuple[Any, ...]]:
    return rows(
        dsn,
        "SELECT u.username, e.address, e.verified_at IS NOT NULL, e.is_primary FROM gatepost.emails e "
        "JOIN gatepost.users u ON u.id = e.user_id ORDER BY u.canonical, e.is_primary DESC, e.canonical",
    )


def test_addresses_come_along_from_json_and_csv_and_go_along_in_an_export(
    run: Run, dsn: Dsn, postgres: PostgresServer, template: str
) -> None:
    people: list[dict[str, Any]] = [
        {"username": "ada", "email": "Ada@Example.org", "email_verified": True},
        {"username": "bob", "email": "bob@example.org"},
        {
            "username": "cyd",
            "emails": [
                {"address": "new@example.org", "verified": False},
                {"address": "second@example.org", "verified": True},
                {"address": "first@example.org", "verified": True, "primary": True},
            ],
        },
    ]
    expected = [
        ("ada", "Ada@example.org", True, True),
        ("bob", "bob@example.org", False, False),
        ("cyd", "first@example.org", True, True),
        ("cyd", "new@example.org", False, False),
        ("cyd", "second@example.org", True, False),
    ]
    assert run("import", "-", stdin=jsonl(*people)).returncode == 0
    assert addresses(dsn) == expected
    # Once more: they are there already, with what is theirs.
    again = run("import", "-", stdin=jsonl(*people))
    assert again.stdout == "0 users added, 3 were there already, 0 lines refused.\n"
    exported = run("export").stdout
    with postgres.database(template) as elsewhere:
        assert run("import", "-", stdin=exported, to=elsewhere).returncode == 0
        assert addresses(elsewhere) == expected
    table = "username,email,email_verified\ndan,dan@example.org,true\neve,eve@example.org,\n"
    assert run("import", "-", "--format", "csv", stdin=table).returncode == 0
    assert addresses(dsn)[-2:] == [
        ("dan", "dan@example.org", True, True),
        ("eve", "eve@example.org", False, False),
    ]


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_two_users_who_claim_one_verified_address_are_refused_by_line(
    run: Run, dsn: Dsn, arguments: list[str]
) -> None:
    run("import", "-", stdin=jsonl({"username": "old", "email": "old@example.org", "email_verified": True}))
    people: list[dict[str, Any]] = [
        {"username": "ada", "email": "one@example.org", "email_verified": True},
        {"username": "bob", "email": "ONE@example.org", "email_verified": True},
        {"username": "cyd", "email": "one@example.org"},  # a claim only
        {"username": "dan", "email": "old@example.org", "email_verified": True},
    ]
    done = run("import", "-", *arguments, stdin=jsonl(*people))
    assert done.returncode == 1
    assert done.stderr == (
        "line 2: email: is another user's verified address\nline 4: email: is another user's verified address\n"
    )
    assert usernames(dsn) == (["old"] if arguments else ["ada", "cyd", "old"])


def test_a_dry_run_remembers_addresses_of_earlier_batches(dsn: Dsn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH", 1)
    people: list[dict[str, Any] | str] = [
        {"username": name, "email": "one@example.org", "email_verified": True} for name in ("ada", "bob")
    ]
    refused: list[Refusal] = []
    connection = blocking.connect(dsn)
    try:
        run = importing.Import(connection, Judge(), True, refused.append, lambda *_: None)
        run.run(Source(io.BytesIO(jsonl(*people).encode()), "jsonl"))
    finally:
        connection.close()
    assert refused == [Refusal(2, "email: is another user's verified address")]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"email": "nonsense"}, "email: must be a mail address"),
        ({"email": "ada@example.org", "email_verified": "yes"}, "email_verified: must be true or false"),
        ({"email": "ada@example.org", "emails": []}, "emails: is given beside email"),
        ({"emails": "ada@example.org"}, "emails: must be a list of at most 10"),
        ({"emails": ["ada@example.org"]}, "emails: each must be an object"),
        ({"emails": [{"address": "a@b.org"}, {"address": "A@b.org"}]}, "emails: one address occurs twice"),
        ({"emails": [{"address": 1}]}, "emails: address must be a string"),
        ({"emails": [{"address": "@"}]}, "emails: must be a mail address"),
    ],
)
def test_an_address_that_is_none_is_named(fields: dict[str, Any], reason: str) -> None:
    judged = Judge()(Record(7, {"username": "ada", **fields}))
    assert isinstance(judged, Refusal)
    assert judged.reason.startswith(reason)


# --------------------------------------------------------------------------------- files of other services

BCRYPT = MADE["bcrypt 2b"]


def exported(source: str, folder: Path) -> Path:
    """A file as this service exports it: one user whose address is verified, one whose is not, one disabled."""
    if source == "auth0":
        people: list[dict[str, Any]] = [
            {
                "_id": {"$oid": "60425dc43519d90068f82973"},
                "email_verified": verified,
                "email": f"{name}@example.org",
                "passwordHash": BCRYPT,
                "password_set_date": {"$date": "2021-03-05T16:32:04.526Z"},
                "created_at": {"$date": "2021-03-05T16:32:04.000Z"},
                "name": name.title(),
                "user_metadata": {"colour": "blue", "name": "a key that stands beside it too"},
                "blocked": name == "cyd",
                "tenant": "dev-tenant",
                "connection": "Username-Password-Authentication",
                "_tmp_is_unique": True,
            }
            for name, verified in (("ada", True), ("bob", False), ("cyd", False))
        ]
        text = jsonl(*people)
    elif source == "supabase":
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(
            [
                "instance_id",
                "id",
                "aud",
                "role",
                "email",
                "encrypted_password",
                "email_confirmed_at",
                "created_at",
                "raw_user_meta_data",
                "is_super_admin",
                "phone",
                "banned_until",
                "deleted_at",
                "is_sso_user",
            ]
        )
        for n, (name, verified, banned) in enumerate(
            [
                ("ada", "2024-05-01 10:00:00.123456+00", ""),
                ("bob", "", "2024-05-01 10:00:00+00"),  # a ban that is over
                ("cyd", "", "2999-01-01 00:00:00+00"),
            ]
        ):
            id_ = f"3f0c8a52-7c53-4a80-9d4e-9a5a3f1f6a0{n}"
            meta = '{"colour": "blue"}'
            created = "2021-03-05 16:32:04+00"
            row = ["0", id_, "authenticated", "authenticated", f"{name}@example.org", BCRYPT, verified, created, meta]
            writer.writerow([*row, "", "", banned, "", "f"])
        text = table.getvalue()
    elif source == "firebase":
        password, salt = FIREBASE_USER
        users = [
            {
                "localId": name,
                "email": f"{name}@example.org",
                "emailVerified": verified,
                "passwordHash": password,
                "salt": salt,
                "displayName": name.title(),
                "lastSignedInAt": "1614961924000",
                "createdAt": "1614961924000",
                "disabled": name == "cyd",
                "providerUserInfo": [],
            }
            for name, verified in (("ada", True), ("bob", False), ("cyd", False))
        ]
        text = json.dumps({"users": users}, indent=2)
    else:
        users = [
            {
                "id": "8c2a5a2e-1111-4222-8333-444455556666",
                "createdTimestamp": 1614961924000,
                "username": name,
                "enabled": name != "cyd",
                "totp": False,
                "emailVerified": verified,
                "firstName": name.title(),
                "email": f"{name}@example.org",
                "attributes": {"locale": ["de"]},
                "credentials": [{"id": "1", "createdDate": 1614961924000, **keycloak("pbkdf2-sha256")}],
                "realmRoles": ["default-roles-x", "staff"],
            }
            for name, verified in (("ada", True), ("bob", False), ("cyd", False))
        ]
        text = json.dumps({"realm": "x", "roles": {"realm": []}, "users": users}, indent=2)
    suffix = {"auth0": "ndjson", "supabase": "csv"}.get(source, "json")
    path = folder / f"users.{suffix}"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("source", ["auth0", "supabase", "firebase", "keycloak"])
async def test_users_come_from_another_services_export_as_it_is(
    run: Run, config: Config, dsn: Dsn, tmp_path: Path, start_server: StartServer, source: str
) -> None:
    file = exported(source, tmp_path)
    arguments = []
    if source == "firebase":
        key = tmp_path / "key.txt"
        key.write_bytes(base64.b64encode(FIREBASE.signer_key))
        arguments = ["--firebase-signer-key-file", str(key)]
    done = run("import", str(file), "--from", source, *arguments)
    assert (done.stdout, done.stderr) == ("3 users added, 0 were there already, 0 lines refused.\n", "")
    assert rows(
        dsn,
        "SELECT e.address, e.verified_at IS NOT NULL, u.disabled_at IS NOT NULL, "
        "extract(year FROM u.created_at)::int FROM gatepost.users u JOIN gatepost.emails e ON e.user_id = u.id "
        "ORDER BY 1",
    ) == [
        ("ada@example.org", True, False, 2021),
        ("bob@example.org", False, False, 2021),
        ("cyd@example.org", False, True, 2021),
    ]
    client = await start_server(with_mail(config, tmp_path / "mail"))
    password = "user1password" if source == "firebase" else TYPED
    await log_in(client, "ada@example.org", password)


def test_a_file_of_another_form_is_said_in_a_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "users.json"
    for text, said in [
        ('{"users": [{"email": "ada@example.org"}', "after 1 users it is not JSON"),
        ('{"people": []}', "it is no JSON object with a list of users"),
        ("[1, 2", "it is not JSON"),
    ]:
        file.write_text(text, "utf-8")
        done = run("import", str(file), "--from", "keycloak")
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert "--from okta: there are auth0," in run("import", str(file), "--from", "okta").stderr


def test_what_an_export_says_of_one_user_does_not_stop_the_others(run: Run, dsn: Dsn, tmp_path: Path) -> None:
    file = tmp_path / "users.json"
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    people = [
        {"username": "ada"},
        7,
        {"username": "b b"},
        {"username": "cyd", "x": "y" * 70_000},
        {"username": "dan"},
    ]
    file.write_text(json.dumps({"users": [*people, {"username": "eve", "deep": deep}]}), "utf-8")
    done = run("import", str(file), "--from", "keycloak")
    assert usernames(dsn) == ["ada", "dan", "eve"]
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["line 2", "line 3", "line 4"]


async def test_ldaps_hashes_are_imported_within_argon2id_and_sign_in(run: Run, client: Client, dsn: Dsn) -> None:
    people = [{"username": f"user{n}", "hash": FAST["{SSHA}"][1]} for n in range(5)]
    people.insert(2, {"username": "plain", "hash": BCRYPT})
    done = run("import", "-", stdin=jsonl(*people, {"username": "bad", "hash": "{SSHA}AAAA"}))
    assert done.stdout == "6 users added, 0 were there already, 1 lines refused.\n"
    assert done.stderr.startswith("line 7: hash: ")
    settings = [setting for (setting,) in rows(dsn, "SELECT setting FROM gatepost.passwords ORDER BY 1")]
    assert [setting.startswith("$ldap-argon2id$h=sha1,m=19456,t=2,p=1$") for setting in settings].count(True) == 5
    await log_in(client, "user3", "hashcat")
    assert rows(dsn, "SELECT count(*) FROM gatepost.passwords WHERE setting LIKE '$ldap%%'") == [(4,)]
