"""The section ``pages``: what people see."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from gatepost.config.mail import LANGUAGES, Language
from gatepost.config.sections import Section
from gatepost.config.values import FROM_TEXT, Origin


class PagesConfig(Section):
    """The pages on which people sign in and look after their account."""

    enabled: bool = Field(True, description="Whether there are pages. `false`: none of their paths exists.")
    name: str = Field("Gatepost", min_length=1, max_length=60, description="What pages call this service.")
    logo: Path | None = Field(
        None, description="A picture (SVG, PNG, WebP) that is shown above the name; 64 KB at most."
    )
    accent: str = Field(
        "#1d4ed8",
        pattern=r"^#[0-9a-fA-F]{6}$",
        description="Colour of buttons. Their text becomes black or white, whichever can be read better.",
    )
    languages: Annotated[tuple[Language, ...], *FROM_TEXT] = Field(
        LANGUAGES,  # type: ignore[arg-type]
        min_length=1,
        description="Languages of pages; the first is for browsers that ask for none of them.",
    )
    templates: Path | None = Field(None, description="Folder with templates in place of ours; one by one.")
    return_to: Annotated[tuple[Origin, ...], *FROM_TEXT] = Field(
        (), description="Origins (`https://app.example`) to which one is sent back after signing in."
    )
    gallery: bool = Field(False, description="Whether `/gallery` shows every page in every state: for designers.")

    @field_validator("name")
    @classmethod
    def _is_one_line(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError("must be one line of text")
        return text

    @field_validator("return_to")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            # What stands in a header (Content-Security-Policy) and is compared with what a browser makes of a URL.
            if not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?", origin):
                raise ValueError(
                    f"{origin} is no origin: a scheme, a host in ASCII, and a port that is not the scheme's"
                )
        return origins

    @model_validator(mode="after")
    def _languages_differ(self) -> Self:
        if len(set(self.languages)) < len(self.languages):
            raise ValueError("languages names one twice")
        return self
