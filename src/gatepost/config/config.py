"""The whole configuration: all sections, and what holds between two of them."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, create_model, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gatepost.config import reading
from gatepost.config.factors import FactorsConfig
from gatepost.config.mail import MailConfig
from gatepost.config.pages import PagesConfig
from gatepost.config.sections import (
    AccountsConfig,
    CookiesConfig,
    DbConfig,
    EventsConfig,
    LogConfig,
    PasswordsConfig,
    Section,
    SessionsConfig,
    WebServerConfig,
)
from gatepost.config.throttle import ThrottleConfig

# Of the embedded Postgres' 130 connections: the rest is for feeds (one for each worker), commands and the superuser.
EMBEDDED_CONNECTIONS = 90


def _sections_only(value: Any) -> Any:
    if not isinstance(value, (dict, BaseModel)):
        raise ValueError("must be an object")  # noqa: TRY004 (pydantic collects ValueErrors)
    return value


def _takes_passkeys(origin: str) -> bool:
    """Whether browsers do, for pages of this origin (WebAuthn §5.1.3: a secure context, and a domain)."""
    where = urlsplit(origin)
    host = where.hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return host == "localhost" or where.scheme == "https"
    return False


class Config(BaseSettings):
    """The whole configuration.

    Build it with :meth:`load`; a test or a library user may also pass sections as keywords.
    """

    model_config = SettingsConfigDict(
        env_prefix=reading.PREFIX,
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
    cookies: Annotated[CookiesConfig, BeforeValidator(_sections_only)] = CookiesConfig()
    throttle: Annotated[ThrottleConfig, BeforeValidator(_sections_only)] = ThrottleConfig()
    mail: Annotated[MailConfig, BeforeValidator(_sections_only)] = MailConfig()
    factors: Annotated[FactorsConfig, BeforeValidator(_sections_only)] = FactorsConfig()
    pages: Annotated[PagesConfig, BeforeValidator(_sections_only)] = PagesConfig()
    events: Annotated[EventsConfig, BeforeValidator(_sections_only)] = EventsConfig()
    log: Annotated[LogConfig, BeforeValidator(_sections_only)] = LogConfig()

    # What features add to the type; the values are never global.
    _added: ClassVar[dict[str, type[Section]]] = {}

    @model_validator(mode="after")
    def _embedded_server_has_the_connections(self) -> Self:
        most = self.webserver.workers * self.db.pool_size
        if self.db.embedded and most > EMBEDDED_CONNECTIONS:
            raise ValueError(
                f"webserver.workers x db.pool_size is {most}, and the embedded Postgres has {EMBEDDED_CONNECTIONS} "
                "connections: lower db.pool_size"
            )
        return self

    @model_validator(mode="after")
    def _required_addresses_can_be_verified(self) -> Self:
        if self.accounts.email == "required" and not self.mail.sends:
            raise ValueError("accounts.email is required, so mail.host or mail.directory must be given")
        return self

    @model_validator(mode="after")
    def _passkeys_fit_their_origins(self) -> Self:
        domain = self.factors.relying_party
        if domain and not self.passkey_origins:
            raise ValueError("factors.relying_party is given, so webserver.public_url must be too")
        for origin in self.passkey_origins:
            if not _takes_passkeys(origin):
                raise ValueError(f"browsers take passkeys for https://NAME and for localhost only, not for {origin}")
            host = urlsplit(origin).hostname or ""
            domain = domain or host  # that of the first
            if host != domain and not host.endswith("." + domain):
                raise ValueError(f"passkeys of {domain} cannot be used on {origin}: see factors.relying_party")
        return self

    @model_validator(mode="after")
    def _sign_in_is_in_the_domain_of_cookies(self) -> Self:
        host = urlsplit(self.webserver.public_url or "").hostname or ""
        if self.cookies.domain and not self.cookies.domain_for(host):
            raise ValueError(f"cookies.domain is {self.cookies.domain}, so webserver.public_url must be a host in it")
        return self

    @property
    def passkey_origins(self) -> tuple[str, ...]:
        """The origins whose pages may use passkeys; none where there are no passkeys."""
        public, factors = self.webserver.public_url, self.factors
        wanted = bool(factors.relying_party or factors.origins)
        own = (public,) if public and (wanted or _takes_passkeys(public)) else ()
        return tuple(dict.fromkeys((*own, *factors.origins)))

    @property
    def has_addresses(self) -> bool:
        """Whether users have mail addresses: they are wanted, and mail can be sent."""
        return self.accounts.email != "off" and self.mail.sends

    @property
    def notice_language(self) -> str | None:
        """The language of mail to users that an operator causes; None where no mail is sent."""
        return self.mail.language if self.has_addresses else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (the signature is pydantic-settings')
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed. `reading` looks at the environment."""
        return (init_settings,)

    @classmethod
    def add_section(cls, name: str, model: type[Section]) -> None:
        """Let `load` know a section that a feature has; every key of it has a default."""
        cls._added[name] = model

    @classmethod
    def load(cls, file: Path | None = None, *, workers: int | None = None) -> Self:
        """Read the configuration.

        ``file``: the JSON file. Without it: the one that ``GATEPOST_CONFIG`` names, else ``config.json`` in the
        working directory where there is one, else none. ``workers``: given on the command line, before all else.
        Raises ConfigError, naming the source and the key.
        """
        sections: dict[str, Any] = {
            name: (Annotated[model, BeforeValidator(_sections_only)], model()) for name, model in cls._added.items()
        }
        whole = create_model(cls.__name__, __base__=cls, **sections) if sections else cls
        return reading.read(whole, file, {"webserver": {"workers": workers}} if workers else {})
