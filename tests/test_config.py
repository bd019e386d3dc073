"""The configuration: every key documented, every mistake named."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gatepost.config import Config, ConfigError

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"
PEPPER = "a pepper, long enough"


def keys() -> Iterator[tuple[str, str, str]]:
    """Every key of the model, its default and its description, as the table in the docs has them."""
    for section, field in Config.model_fields.items():
        model = type(field.default)
        assert issubclass(model, BaseModel)
        for key, option in model.model_fields.items():
            default = option.get_default(call_default_factory=True, validated_data={})
            text = ", ".join(default) if isinstance(default, tuple) else str(default)
            shown = {None: "–", (): "none"}.get(default, text) if not isinstance(default, dict) else "none"
            assert option.description
            yield f"`{section}.{key}`", shown, option.description


def test_every_key_stands_in_the_docs_with_its_default_and_reason() -> None:
    documented = [
        tuple(cell.strip() for cell in line.strip("|").split(" | "))
        for line in DOCS.read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert documented == list(keys())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(values: object) -> None:
    Path("config.json").write_text(json.dumps(values), "utf-8")


def test_without_a_file_everything_has_a_default_and_registration_is_closed() -> None:
    config = Config.load()
    assert config.db.embedded
    assert config.accounts.registration == "closed"
    assert config.webserver.port == 8000


def test_the_environment_goes_before_secrets_and_secrets_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"db": {"host": "file", "user": "file", "password": "file", "database": "file"}})
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "db__user").write_text("secret\n")
    (secrets / "db__password").write_text("secret\n")
    (secrets / "somebody_elses").write_text("x")
    monkeypatch.setenv("GATEPOST_SECRETS_DIR", str(secrets))
    monkeypatch.setenv("GATEPOST_DB__PASSWORD", "environment")
    db = Config.load().db
    assert db.password is not None
    assert (db.host, db.user, db.password.get_secret_value()) == ("file", "secret", "environment")


def test_a_file_named_by_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"webserver": {"port": 1234}}')
    monkeypatch.setenv("GATEPOST_CONFIG", str(other))
    assert Config.load().webserver.port == 1234


def test_lists_and_objects_can_be_given_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEPOST_WEBSERVER__CORS_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("GATEPOST_PASSWORDS__PEPPERS__1", PEPPER)
    config = Config.load()
    assert config.webserver.cors_origins == ("https://a.example", "https://b.example")
    assert config.passwords.current_pepper == "1"


def test_a_library_users_keywords_are_not_changed_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEPOST_WEBSERVER__PORT", "1234")
    assert Config().webserver.port == 8000


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"webserver": {"port": 70000}}, "webserver.port"),
        ({"webserver": {"port": "x"}}, "webserver.port"),
        ({"webserver": {"prot": 1}}, "webserver.prot: there is no such key"),
        ({"web": {}}, "web: there is no such key"),
        ({"webserver": []}, "webserver: must be an object"),
        ({"webserver": {"cors_origins": ["*"]}}, "webserver.cors_origins.0"),
        ({"webserver": {"host": "example..com"}}, "webserver.host: is no host name"),
        ({"webserver": {"operator_host": "x" * 64}}, "webserver.operator_host: is no host name"),
        ({"db": {"host": "h"}}, "user and database"),
        ({"db": {"host": "a, b..c", "user": "u", "database": "d"}}, "db.host: is no host name"),
        ({"db": {"host": " ,", "user": "u", "database": "d"}}, "db.host: names no host"),
        ({"db": {"user": "a\0b"}}, "db.user: must be UTF-8 without U+0000"),
        ({"db": {"password": "\ud800"}}, "db.password: must be UTF-8 without U+0000"),
        ({"db": {"data_dir": "a\0b"}}, "db.data_dir: must be UTF-8 without U+0000"),
        ({"passwords": {"peppers": {"1": PEPPER + "\ud800"}}}, "passwords.peppers: must be UTF-8 without U+0000"),
        ({"passwords": {"peppers": {"1": "short"}}}, "passwords.peppers"),
        ({"passwords": {"pepper": "2", "peppers": {"1": PEPPER}}}, "pepper names '2'"),
        ({"passwords": {"peppers": {"1": PEPPER, "2": PEPPER}}}, "which one"),
        ({"passwords": {"memory_kib": 1}}, "passwords.memory_kib"),
        ([], "must be a JSON object"),
    ],
)
def test_a_bad_key_is_named_with_its_file(values: Any, named: str) -> None:
    write(values)
    with pytest.raises(ConfigError) as error:
        Config.load()
    assert named in str(error.value)
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEPOST_WEBSERVER__PORT", "70000"),
        ("GATEPOST_DB__PASWORD", "hunter2 hunter2"),
        ("GATEPOST_DBB__PASSWORD", "hunter2 hunter2"),
        ("GATEPOST_PORT", "8000"),
        ("GATEPOST_WEBSERVER", "{}"),
        ("GATEPOST_WEBSERVER__CORS_ORIGINS", "*"),
        ("GATEPOST_PASSWORDS__PEPPERS", "hunter2 hunter2"),
        ("GATEPOST_DB__PASSWORD", "hunter2 hunter2 \udcfc"),
    ],
)
def test_a_bad_variable_is_named_and_its_value_is_not_repeated(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        Config.load()
    assert name in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: there is no such file"):
        Config.load(tmp_path / "nowhere.json")
    Path("config.json").write_text("{not json")
    with pytest.raises(ConfigError, match=r"config\.json: is not JSON"):
        Config.load()


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"/dev/zero: is larger than 1048576 bytes"):
        Config.load(Path("/dev/zero"))


def test_a_key_that_occurs_twice_is_named() -> None:
    Path("config.json").write_text('{"db": {"host": "a", "host": "b"}}')
    with pytest.raises(ConfigError, match=r"config\.json: is not JSON: the key 'host' occurs twice"):
        Config.load()


@pytest.mark.parametrize(
    "hosts", ["127.0.0.1", "::1", "localhost.", "bücher.example", "a,, b", "/run/postgres..ql", "@x"]
)
def test_addresses_names_and_socket_folders_are_hosts(hosts: str) -> None:
    write({"db": {"host": hosts, "user": "u", "database": "d"}})
    assert Config.load().db.host == hosts


def test_a_missing_secrets_directory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEPOST_SECRETS_DIR", "/nowhere/at/all")
    with pytest.raises(ConfigError, match="/nowhere/at/all"):
        Config.load()


@pytest.mark.parametrize("closed", ["secrets", "secrets/db__password"])
def test_secrets_that_may_not_be_read_are_named(monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        secrets = Path(folder, "secrets")
        secrets.mkdir()
        (secrets / "db__password").write_text("hunter2")
        Path(folder, closed).chmod(0)
        monkeypatch.setenv("GATEPOST_SECRETS_DIR", str(secrets))
        monkeypatch.chdir("/")
        as_root = os.geteuid() == 0
        try:
            if as_root:
                os.seteuid(65534)
            with pytest.raises(ConfigError, match=f"secrets directory: .*Permission denied: '{folder}/{closed}'"):
                Config.load()
        finally:
            if as_root:
                os.seteuid(0)
            Path(folder, closed).chmod(0o700)


def test_no_secret_is_in_the_repr() -> None:
    write({"db": {"password": "hunter2"}, "passwords": {"peppers": {"1": PEPPER}}})
    shown = repr(Config.load())
    assert "hunter2" not in shown
    assert PEPPER not in shown


def test_the_shipped_file_runs_the_embedded_postgres_with_open_registration() -> None:
    config = Config.load(DOCS.parent.parent / "config.json")
    assert config.db.embedded
    assert config.accounts.registration == "open"
