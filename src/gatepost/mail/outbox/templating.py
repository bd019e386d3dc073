"""What mail says: a template in a language, as text and as HTML."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    PackageLoader,
    StrictUndefined,
    TemplateError,
    TemplateNotFound,
    TemplatesNotFound,
    select_autoescape,
)

from gatepost.config import ConfigError, MailConfig
from gatepost.config.mail import LANGUAGES
from gatepost.mail.outbox.samples import SAMPLES

MAX_SUBJECT = 200


@dataclass(frozen=True, slots=True)
class _Paragraph:
    text: str
    lead: str
    """All lines but the last."""
    last: str


class Content(NamedTuple):
    """What a mail says."""

    subject: str
    text: str
    html: str


class Templates:
    """The templates: ours, and in their place those of the operator.

    ``KIND.LANGUAGE.txt`` is a mail: a line ``Subject: …``, an empty line, and the text. Its HTML is the same text in
    ``layout.html``, unless there is a ``KIND.LANGUAGE.html``.
    """

    def __init__(self, config: MailConfig) -> None:
        """Raises ConfigError for a template of the operator that cannot be rendered."""
        own = [FileSystemLoader(config.templates)] if config.templates else []
        self._environment = Environment(
            loader=ChoiceLoader([*own, PackageLoader("gatepost.mail.outbox")]),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._config = config
        if config.templates:
            self._try(config.templates)

    def _try(self, folder: Path) -> None:
        """Render everything once, so that a mistake is told before anything starts."""
        if not folder.is_dir():
            raise ConfigError(f"mail.templates: {folder} is no folder")
        mails = {f"{kind}.{language}" for kind in SAMPLES for language in LANGUAGES}
        names = {"layout.html", *(f"{mail}.{form}" for mail in mails for form in ("txt", "html"))}
        if unknown := sorted({path.name for path in folder.iterdir()} - names):
            raise ConfigError(f"mail.templates: {folder / unknown[0]} is no mail of ours")
        for kind, values in SAMPLES.items():
            for language in LANGUAGES:
                try:
                    self.render(kind, language, values)
                except (TemplateError, ValueError) as error:
                    raise ConfigError(f"mail.templates: {kind}.{language}: {error}") from None

    def render(self, kind: str, language: str, values: dict[str, Any], link: str | None = None) -> Content:
        """What a mail of this kind says. ``link``: the page that takes its code. Raises ValueError without a subject.

        Templates are given ``service``, ``language`` and ``link``, and ``values``.
        """
        values = {"service": self._config.service, "language": language, "link": link, **values}
        rendered = self._environment.get_template(f"{kind}.{language}.txt").render(values)
        head, _, body = rendered.partition("\n\n")
        subject = head.removeprefix("Subject: ").strip()
        if not head.startswith("Subject: ") or "\n" in subject or not 0 < len(subject) <= MAX_SUBJECT:
            raise ValueError(f"must begin with `Subject: …` of at most {MAX_SUBJECT} characters, and an empty line")
        text = re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"
        paragraphs = []
        for paragraph in text.strip().split("\n\n"):
            lead, _, last = paragraph.rpartition("\n")
            paragraphs.append(_Paragraph(paragraph, lead, last))
        values |= {"subject": subject, "paragraphs": paragraphs}
        values.setdefault("code", None)
        try:
            page = self._environment.select_template([f"{kind}.{language}.html", "layout.html"])
        except (TemplateNotFound, TemplatesNotFound) as error:
            raise ValueError(f"{error} is missing") from None
        return Content(subject, text, page.render(values))
