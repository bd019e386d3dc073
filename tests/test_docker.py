"""`docker compose up` in a fresh clone, by a real engine: what a stranger does, and what they were promised."""

import contextlib
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PASSWORD, docker_answers

pytestmark = pytest.mark.docker

CHECKOUT = Path(__file__).parent.parent
# The first build fetches every dependency.
BUILD_TIMEOUT = 1800
PASSWORD_FILE = "/run/gatepost/db__password"


def run(
    *command: str,
    timeout: float = 300,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    given: str | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd, env=environment, input=given
    )


class Stack:
    """A project of docker compose in a clone, under a name of its own."""

    def __init__(self, clone: Path, **settings: str) -> None:
        self.project = f"gatepost-test-{uuid.uuid4().hex[:8]}"
        self._clone = clone
        # What this shell happens to set is not part of a fresh clone. Port 0: the engine takes a free one.
        ours = ("POSTGRES_", "GATEPOST_", "COMPOSE_")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self._environment |= {"GATEPOST_WEBSERVER__PORT": "0", "BUILDKIT_PROGRESS": "plain"} | settings

    def attempt(self, *arguments: str, timeout: float = 300, **settings: str) -> subprocess.CompletedProcess[str]:
        command = ("docker", "compose", "--project-name", self.project, *arguments)
        return run(*command, timeout=timeout, cwd=self._clone, environment=self._environment | settings)

    def compose(self, *arguments: str, timeout: float = 300) -> str:
        done = self.attempt(*arguments, timeout=timeout)
        if done.returncode != 0:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
            pytest.fail(f"docker compose {' '.join(arguments)} failed:\n{said}")
        return done.stdout.strip()

    def up(self) -> None:
        self.compose("up", "--detach", "--build", "--wait", timeout=BUILD_TIMEOUT)

    def remove(self) -> None:
        self.compose("down", "--volumes", "--rmi", "local", "--remove-orphans", timeout=600)

    def python(self, service: str, code: str) -> subprocess.CompletedProcess[str]:
        return self.attempt("exec", "-T", service, "python", "-c", code)

    def log_in_to_postgres(self, password: str) -> subprocess.CompletedProcess[str]:
        # By the name on the network: the loopback interface is trusted inside the official image.
        psql = ("psql", "-h", "db", "-U", "gatepost", "-Atc", "SELECT 'in'")
        return self.attempt("exec", "-T", "-e", f"PGPASSWORD={password}", "db", *psql)

    def kept_password(self) -> str:
        return self.compose("exec", "-T", "db", "cat", PASSWORD_FILE)

    def inspect(self, service: str) -> dict[str, Any]:
        container = self.compose("ps", "--all", "--quiet", service)
        facts: list[dict[str, Any]] = json.loads(run("docker", "inspect", container).stdout)
        return facts[0]

    def inspect_all(self) -> str:
        return run("docker", "inspect", *self.compose("ps", "--all", "--quiet").split()).stdout

    def request(
        self, method: str, path: str, body: object = None, token: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        url = f"http://{self.compose('port', 'app', '8000')}{path}"
        headers = {"Content-Type": "application/json"} if body else {}
        if token:
            headers["Authorization"] = token
        data = json.dumps(body) if body else None
        status, text = (_curl if shutil.which("curl") else _urllib)(method, url, headers, data)
        return status, json.loads(text)

    def register(self, username: str) -> int:
        return self.request("POST", "/account", {"username": username, "password": PASSWORD})[0]

    def log_in(self, username: str) -> str:
        status, body = self.request("POST", "/user", {"username": username, "password": PASSWORD})
        assert status == 200, body
        token: str = body["session_id"]
        return token


def _curl(method: str, url: str, headers: dict[str, str], data: str | None) -> tuple[int, str]:
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", "60", "-X", method, "-w", "\n%{http_code}", url]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    if data is not None:
        command += ["--data-binary", "@-"]
    done = run(*command, given=data)
    assert done.returncode == 0, done.stderr
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text


def _urllib(method: str, url: str, headers: dict[str, str], data: str | None) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = data.encode() if data is not None else None
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as someone else would get it: what is ignored here does not come along."""
    if not docker_answers():
        pytest.skip("no Docker engine answers")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=CHECKOUT)
    assert listed.returncode == 0, listed.stderr
    folder = tmp_path_factory.mktemp("clone")
    for name in filter(None, listed.stdout.split("\0")):
        if (CHECKOUT / name).is_file():  # not one that was deleted since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / name)
    return folder


@contextlib.contextmanager
def running(clone: Path, **settings: str) -> Iterator[Stack]:
    stack = Stack(clone, **settings)
    try:
        stack.up()
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="module")
def stack(clone: Path) -> Iterator[Stack]:
    """Everything up, with nothing prepared."""
    with running(clone) as stack:
        yield stack


def test_the_readmes_requests_work_in_a_fresh_clone(stack: Stack) -> None:
    assert stack.register("ada") == 201
    token = stack.log_in("ada")
    status, body = stack.request("GET", "/user", token=token)
    assert (status, body["user"]["username"]) == (200, "ada")
    assert stack.request("DELETE", "/user", token=token)[0] == 200
    assert stack.request("GET", "/user", token=token)[0] == 401


def test_the_app_is_healthy_by_its_own_check(stack: Stack) -> None:
    assert stack.inspect("app")["State"]["Health"]["Status"] == "healthy"


def test_the_app_is_not_root_and_holds_no_capability(stack: Stack) -> None:
    status = stack.compose("exec", "-T", "app", "cat", "/proc/1/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines())
    assert facts["Uid"].split() == ["10001"] * 4
    assert int(facts["CapBnd"], 16) == 0
    assert facts["NoNewPrivs"] == "1"


def test_the_app_cannot_write_to_its_file_system(stack: Stack) -> None:
    assert stack.inspect("app")["HostConfig"]["ReadonlyRootfs"] is True
    assert "Read-only file system" in stack.python("app", "open('/etc/gatepost/x', 'w')").stderr
    assert stack.python("app", "open('/tmp/x', 'w')").returncode == 0


def test_the_image_holds_no_compiler_and_no_curl(stack: Stack) -> None:
    code = "import shutil; print([p for p in ('cc', 'gcc', 'curl', 'wget') if shutil.which(p)])"
    assert stack.python("app", code).stdout.strip() == "[]"


def test_the_database_is_reachable_only_inside(stack: Stack) -> None:
    network = stack.inspect("db")["NetworkSettings"]
    assert not any(network["Ports"].values())
    assert list(network["Networks"]) == [f"{stack.project}_database"]
    inside = json.loads(run("docker", "network", "inspect", f"{stack.project}_database").stdout)
    assert inside[0]["Internal"] is True

    address = network["Networks"][f"{stack.project}_database"]["IPAddress"]
    knock = "import socket; socket.create_connection(({!r}, 5432), {})".format
    assert stack.python("app", knock(address, 60)).returncode == 0
    elsewhere = run(
        "docker", "run", "--rm", "--entrypoint", "python", f"{stack.project}-app", "-c", knock(address, 2)
    )
    assert elsewhere.returncode == 1, elsewhere
    assert "Error" in elsewhere.stderr.splitlines()[-1]


def test_the_password_is_random_and_only_in_a_file_for_those_who_need_it(stack: Stack) -> None:
    password = stack.kept_password()
    assert len(password) == 64
    assert password not in stack.inspect_all()
    listed = stack.compose("exec", "-T", "db", "stat", "-c", "%a %u %g", PASSWORD_FILE)
    assert listed == "440 999 10001"
    assert stack.attempt("exec", "-T", "--user", "65534:65534", "app", "cat", PASSWORD_FILE).returncode == 1
    assert stack.log_in_to_postgres(password).stdout.strip() == "in"
    assert "authentication failed" in stack.log_in_to_postgres("another").stderr


def test_a_stop_ends_the_app_by_itself_with_exit_code_0(stack: Stack) -> None:
    try:
        stack.compose("stop", "--timeout", "60", "app")  # then it would be killed: 137
        assert stack.inspect("app")["State"]["ExitCode"] == 0
    finally:
        stack.up()


def test_accounts_and_sessions_survive_down_and_up(stack: Stack) -> None:
    assert stack.register("grace") == 201
    token, password = stack.log_in("grace"), stack.kept_password()
    stack.compose("down", timeout=600)
    stack.up()
    status, body = stack.request("GET", "/user", token=token)
    assert (status, body["user"]["username"]) == (200, "grace")
    assert stack.log_in("grace")
    assert stack.kept_password() == password


def test_no_container_has_an_anonymous_volume(stack: Stack) -> None:
    # The postgres image declares a volume: a service that uses it for something else would leave one at each `up`.
    mounts = [mount for service in ("secrets", "db", "migrate", "app") for mount in stack.inspect(service)["Mounts"]]
    volumes = {mount["Name"] for mount in mounts if mount["Type"] == "volume"}
    assert volumes == {f"{stack.project}_secrets", f"{stack.project}_db"}


def test_a_password_from_the_environment_is_used_and_a_later_other_one_refused(clone: Path) -> None:
    password = """it's a "given" $one % é"""
    with running(clone, POSTGRES_PASSWORD=password) as stack:
        assert stack.register("ada") == 201
        assert stack.log_in_to_postgres(password).stdout.strip() == "in"
        assert "authentication failed" in stack.log_in_to_postgres("another").stderr

        # Postgres would pass over it, and everything would look well with the old password.
        again = stack.attempt("up", "--detach", POSTGRES_PASSWORD="another")
        assert again.returncode != 0
        assert "The given password is not the database's" in stack.compose("logs", "secrets")
        stack.up()
        assert stack.kept_password() == password
        assert stack.log_in("ada")


def test_a_password_from_a_file_of_ones_own_is_used_and_nowhere_to_be_read(clone: Path, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("a secret in a file\n")
    file.chmod(0o600)
    with running(clone, POSTGRES_PASSWORD_FILE=str(file)) as stack:
        assert stack.register("ada") == 201
        assert stack.log_in_to_postgres("a secret in a file").stdout.strip() == "in"
        assert "authentication failed" in stack.log_in_to_postgres("another").stderr
        assert "a secret in a file" not in stack.inspect_all()
