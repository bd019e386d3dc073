"""Every setting, with its reason. Read once at start, frozen, and passed in: nothing here is global.

`sections` says what there is, `config` puts it together, `reading` gets it from files and the environment.
``docs/configuration.md`` is held against the sections by a test.
"""

from gatepost.config.config import Config
from gatepost.config.factors import FactorsConfig
from gatepost.config.mail import MailConfig
from gatepost.config.pages import PagesConfig
from gatepost.config.reading import ConfigError
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

__all__ = [
    "AccountsConfig",
    "Config",
    "ConfigError",
    "CookiesConfig",
    "DbConfig",
    "EventsConfig",
    "FactorsConfig",
    "LogConfig",
    "MailConfig",
    "PagesConfig",
    "PasswordsConfig",
    "Section",
    "SessionsConfig",
    "ThrottleConfig",
    "WebServerConfig",
]
