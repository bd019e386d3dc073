"""The PRECIS profiles (RFC 8264) of precis-i18n, in linear time.

The library judges each character anew wherever it stands, and three of its context rules look at the whole text each
time: 7.8 KB of U+30FB took 6.5 seconds (measured). Here a code point is judged once in the life of the process, and a
rule about the whole text once for each text. The judgements are the library's own. Python's normalization sorts the
marks on one letter in quadratic time, so their number is bounded.
"""

import mmap
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from precis_i18n import get_profile
from precis_i18n.context import context_rule_error
from precis_i18n.derived import CONTEXTJ, CONTEXTO, PVALID, derived_property

_UNKNOWN, _ALLOWED, _CONTEXT, _REFUSED = range(4)

# Characters whose rules (RFC 5892, appendix A.7 to A.9) hold wherever they stand. The dot's looks for a letter of
# three scripts, a digit's for other digits that have a rule.
_DOT = "\u30fb"
_DIGITS = {*map(chr, range(0x0660, 0x066A)), *map(chr, range(0x06F0, 0x06FA))}

# Marks on one letter: more than any language needs (UAX #15 §13). 3,000 of them took 18 ms (measured).
MAX_MARKS = 30
# In the text's canonical combining classes, of which 0 is that of letters.
_TOO_MANY_MARKS = re.compile(rb"[^\0]{%d}" % (MAX_MARKS + 1))
# These are in class 0 and become two marks each when they are decomposed: here they count as the first of the two.
_TWO_MARKS = str.maketrans("\u0f73\u0f75\u0f81", "\u0f71\u0f71\u0f71")

_NON_JOINER = "\u200c"


class Profile:
    """One profile, by its name in IANA's registry: ``UsernameCaseMapped``, ``OpaqueString``, …"""

    def __init__(self, name: str) -> None:
        self._profile: Any = get_profile(name)
        self._ucd: Any = self._profile.base.ucd
        self._allowed = {PVALID} if name.startswith("Username") else {PVALID, "FREE_PVAL"}
        # A megabyte of address space, of which the system hands out a page when a code point in it is seen.
        self._verdicts = mmap.mmap(-1, 0x110000)

    def enforce(self, text: str) -> str:
        """The text as the profile has it. Raises UnicodeEncodeError, as the library's ``enforce`` does.

        Where several characters are refused, the error tells of the first.
        """
        if too_many := _TOO_MANY_MARKS.search(bytes(map(unicodedata.combining, text.translate(_TWO_MARKS)))):
            raise self._error(text, too_many.start(), too_many.start() + 1, "too_many_marks")
        once: str = self._profile.apply_five_rules(text)
        if self._profile.apply_five_rules(once) != once:
            raise self._error(once, 0, len(once), "not_idempotent")
        if not once:
            raise self._error(text, 0, len(text), "empty")
        odd = {character for character in set(once) if self._verdict(character) != _ALLOWED}
        if odd and (wrong := min(self._wrong(once, odd), default=None)):
            raise self._error(once, wrong[0], wrong[0] + 1, wrong[1])
        return once

    def _verdict(self, character: str) -> int:
        verdict = self._verdicts[ord(character)]
        if verdict == _UNKNOWN:
            kind, _ = derived_property(ord(character), self._ucd)
            verdict = _ALLOWED if kind in self._allowed else _CONTEXT if kind in (CONTEXTJ, CONTEXTO) else _REFUSED
            self._verdicts[ord(character)] = verdict
        return verdict

    def _wrong(self, text: str, odd: set[str]) -> Iterator[tuple[int, str]]:
        """What is wrong with the characters that are not simply allowed, ``odd``, and where."""
        refused = {character for character in odd if self._verdict(character) == _REFUSED}
        if refused:
            first = next(position for position, character in enumerate(text) if character in refused)
            yield first, derived_property(ord(text[first]), self._ucd)[1]
        contextual = odd - refused
        for character in contextual:
            judged: dict[tuple[str, int], str] = {}
            for position, context in _contexts(text, character, contextual):
                if context not in judged:
                    judged[context] = context_rule_error(*context, self._ucd)
                if judged[context]:
                    yield position, judged[context]
                    break

    def _error(self, text: str, start: int, end: int, wrong: str) -> UnicodeEncodeError:
        return UnicodeEncodeError(self._profile.name, text, start, end, f"DISALLOWED/{wrong}")


def _contexts(text: str, character: str, contextual: set[str]) -> Iterator[tuple[int, tuple[str, int]]]:
    """Where a character stands, and as much of the text as its rule looks at, with its place in that."""
    if character == _DOT or character in _DIGITS:
        others = set(text) if character == _DOT else contextual
        yield text.index(character), (character + "".join(others), 0)
    elif character == _NON_JOINER:  # the rule looks for letters that join, and not past another one of these
        position = 0
        for before, after in pairwise(text.split(character)):
            position += len(before)
            yield position, (before + character + after, len(before))
            position += 1
    else:
        for found in re.finditer(re.escape(character), text):
            start = max(found.start() - 1, 0)
            yield found.start(), (text[start : found.start() + 2], found.start() - start)
