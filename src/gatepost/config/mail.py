"""The section ``mail``: by which way mail leaves, and what is in it."""

import re
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, SecretStr, field_validator, model_validator

from gatepost.config.sections import Section
from gatepost.config.values import HostName

Language = Literal["en", "de", "fr", "es"]
LANGUAGES: tuple[str, ...] = get_args(Language)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class MailConfig(Section):
    """How mail is sent. With neither `host` nor `directory` there is none, and no addresses."""

    host: HostName | None = Field(None, min_length=1, description="SMTP server.")
    port: int = Field(587, ge=1, le=65535, description="Its port.")
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls",
        description="`starttls`: TLS after the greeting, or no mail. `tls`: from the first byte (port 465). `none`: "
        "plain, for a relay on this machine or in a network of your own.",
    )
    tls_ca: Path | None = Field(None, description="CA certificates for the server. Default: the system's.")
    user: str | None = Field(None, min_length=1, description="User at the SMTP server.")
    password: SecretStr | None = Field(None, description="Its password.")
    timeout: float = Field(20.0, gt=0, le=300, description="Seconds that the SMTP server has for each answer.")
    connections: int = Field(
        2,
        ge=1,
        le=32,
        description="Connections to it at once, of each worker: more are faster to a server far away. With four to "
        "one on the same machine, session checks took three times as long (with two, 1.6 times).",
    )
    directory: Path | None = Field(
        None, description="Folder for mail as `.eml` files, in place of an SMTP server: to try everything out."
    )
    from_address: str = Field("Gatepost <gatepost@localhost>", description="Who mail is from: `Name <address>`.")
    page: str | None = Field(
        None,
        description="Page that mail links to, with the code behind a `#`: it shows a button, and posts the code. "
        "Default: our own pages, where there is `webserver.public_url`; else no links, the code alone.",
    )
    service: str = Field("Gatepost", min_length=1, max_length=100, description="What mail calls this service.")
    language: Language = Field("en", description="Language of mail where the user's browser asks for none of ours.")
    templates: Path | None = Field(None, description="Folder with templates in place of ours; one by one.")

    @field_validator("from_address")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        if not re.fullmatch(r"(?:[^<>@\r\n\",]+ <[^<>@\s,]+@[^<>@\s,]+>|[^<>@\s,]+@[^<>@\s,]+)", text):
            raise ValueError("must be an address: `Name <name@example.org>` or `name@example.org`")
        return text

    @field_validator("page")
    @classmethod
    def _is_a_page(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"https?://[^\s#<>\"]+", text):
            raise ValueError("must be an address of a page (`https://app.example/account`) without a #")
        return text

    @field_validator("service")
    @classmethod
    def _is_one_line(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError("must be one line of text")
        return text

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.host is not None and self.directory is not None:
            raise ValueError("host and directory exclude each other: mail leaves by one way")
        if self.host is None and (self.user is not None or self.password is not None):
            raise ValueError("user and password are for an SMTP server: host must be given too")
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password must be given together")
        if self.user is not None and self.security == "none" and self.host not in _LOOPBACK:
            raise ValueError("security is none, so the password would cross the network as plain text")
        if self.host is not None and self.port in (25, 465, 587) and (self.port == 465) != (self.security == "tls"):
            right = "tls" if self.port == 465 else "starttls"
            raise ValueError(f"security is {self.security}, but port {self.port} is for {right}")
        if self.host is not None and "localhost" in self.from_address:
            raise ValueError("from_address must be given with host: nobody accepts mail from localhost")
        return self

    @property
    def sends(self) -> bool:
        """Whether there is a way for mail to leave."""
        return self.host is not None or self.directory is not None
