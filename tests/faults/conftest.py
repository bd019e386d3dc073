"""Servers to be broken, and a load to do it under. `make faults` runs these; `make faults ARGS=--quick` briefly."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.postgres import Postgres
from tests.faults.service import Service, prepare
from tests.faults.trial import COLUMNS, Outcome, Trial

_OUTCOMES = pytest.StashKey[list[Outcome]]()
_FINDINGS = pytest.StashKey[list[tuple[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="a part of the faults, each for a few seconds only")


def _quick(config: pytest.Config) -> bool:
    return bool(config.getoption("--quick", default=False))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that are much like another are left out of the short form."""
    if _quick(config):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip("not with --quick"))


@pytest.fixture(scope="session")
def faults_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter: Postgres is not run as root."""
    folder = Path(tempfile.mkdtemp(prefix="gatepost-faults-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def prepared(faults_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A stopped server with the schema and an administrator, to be copied."""
    server = Postgres.make(faults_folder / "prepared")
    try:
        server.start()
        prepare(server, tmp_path_factory.mktemp("prepare"))
        server.stop()
        yield server
    finally:
        server.end()


@pytest.fixture
def server(prepared: Postgres, faults_folder: Path) -> Iterator[Postgres]:
    """A running server with data of its own."""
    server = prepared.copy(faults_folder / "server")
    try:
        server.start()
        yield server
    finally:
        server.end()


NewService = Callable[..., Service]


@pytest.fixture
def new_service(tmp_path: Path) -> Iterator[NewService]:
    """Start a node on these servers."""
    made: list[Service] = []

    def start(*servers: Postgres, **variables: str) -> Service:
        service = Service(tmp_path, *servers, **variables)
        made.append(service)
        service.start()
        return service

    yield start
    codes = [service.end() for service in made]
    assert set(codes) <= {0, None}


@pytest.fixture
def service(server: Postgres, new_service: NewService) -> Service:
    """A node on the server."""
    return new_service(server)


@pytest.fixture
def trial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Puts a fault under load."""
    outcomes = request.config.stash.setdefault(_OUTCOMES, [])
    findings = request.config.stash.setdefault(_FINDINGS, [])
    return Trial(tmp_path_factory.getbasetemp(), _quick(request.config), outcomes, findings)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The tables, as docs/reliability.md has them."""
    tables = (
        (COLUMNS, [outcome.row for outcome in config.stash.get(_OUTCOMES, [])]),
        (["fault", "measured besides"], [list(finding) for finding in config.stash.get(_FINDINGS, [])]),
    )
    for columns, rows in tables:
        if rows:
            terminalreporter.section("faults")
            for row in (columns, ["---"] * len(columns), *rows):
                terminalreporter.write_line("| " + " | ".join(row) + " |")
