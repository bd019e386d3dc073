"""The words of pages in each language: gettext catalogues, read from their sources when the service starts."""

import gettext
import io
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from babel.dates import format_date, format_timedelta
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal

ENGLISH = "en"
"""The language of the sources, which has no catalogue."""


class Words(NamedTuple):
    """The words of a language, and how it writes times."""

    language: str
    gettext: Callable[[str], str]
    ngettext: Callable[[str, str, int], str]

    @classmethod
    def of(cls, language: str) -> "Words":
        """Read the catalogue of ``language``: some 20 ms."""
        if language == ENGLISH:
            none = gettext.NullTranslations()
            return cls(language, none.gettext, none.ngettext)
        source = (files("gatepost.pages") / "translations" / f"{language}.po").read_bytes()
        compiled = io.BytesIO()
        write_mo(compiled, read_po(io.BytesIO(source), locale=language))
        compiled.seek(0)
        read = gettext.GNUTranslations(compiled)
        return cls(language, read.gettext, read.ngettext)

    def number(self, number: int) -> str:
        """A number, with its thousands apart."""
        return str(format_decimal(number, locale=self.language))

    def moment(self, moment: str) -> str:
        """A moment of RFC 3339, written out, in UTC."""
        at = datetime.fromisoformat(moment).astimezone(UTC)
        return f"{_day(at.date(), self.language)}, {at:%H:%M} UTC"

    def ago(self, moment: str) -> str:
        """How long ago a moment of RFC 3339 was, in one unit: two minutes ago."""
        passed = datetime.now(UTC) - datetime.fromisoformat(moment)
        return format_timedelta(-max(passed, timedelta(seconds=1)), add_direction=True, locale=self.language)

    def duration(self, seconds: float) -> str:
        """So many seconds, in one unit, rounded up: two minutes."""
        unit = next((unit for unit in (86400, 3600, 60) if seconds >= unit), 1)
        return format_timedelta(timedelta(seconds=-(-seconds // unit) * unit), threshold=1, locale=self.language)


# A list names the same days over and over, and Babel takes 40 µs for one.
@lru_cache(1024)
def _day(day: date, language: str) -> str:
    return format_date(day, "long", locale=language)
