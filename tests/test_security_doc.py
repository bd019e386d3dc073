"""docs/security.md names tests and requirements: they exist, and none is forgotten."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text("utf-8")

# OWASP ASVS 5.0.0: how many requirements each section has.
SECTIONS = (
    {"6.1": 3, "6.2": 12, "6.3": 8, "6.4": 6, "6.5": 8, "6.6": 4, "6.7": 2, "6.8": 4}
    | {"7.1": 3, "7.2": 4, "7.3": 2, "7.4": 5, "7.5": 3, "7.6": 2}
    | {"8.1": 4, "8.2": 4, "8.3": 3, "8.4": 2}
)
ROW = re.compile(
    r"^\| ([678][\d., ]+) \| [123, ]+ \| [^|]+ \| (yes|in part|no|–) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE
)


def test_every_test_that_is_named_exists() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 50
    assert named <= set(re.findall(r"def (test_\w+)\(", sources))


def test_every_link_leads_somewhere() -> None:
    for file, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", TEXT):
        target = ROOT / "docs" / (file or "security.md")
        assert target.is_file(), file
        headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, anchor


def test_every_requirement_of_the_three_chapters_is_answered_or_said_not_to_apply() -> None:
    chapter = TEXT.partition("## OWASP ASVS")[2].partition("\n## ")[0]
    introduction, _, table = chapter.partition("\n| ")
    answered = [number for row in ROW.finditer("| " + table) for number in row[1].split(", ")]
    assert len(answered) == len(set(answered))
    set_aside = re.findall(r"\b\d\.\d(?:\.\d)?\b", introduction.partition("does not apply")[2])
    expected = {f"{section}.{n}" for section, count in SECTIONS.items() for n in range(1, count + 1)}
    not_applying = {number for number in expected if number in set_aside or number[:3] in set_aside}
    assert not not_applying & set(answered)
    assert set(answered) | not_applying == expected


def test_whatever_is_said_to_be_met_says_how() -> None:
    rows = [row for row in ROW.finditer(TEXT) if row[2] in {"yes", "in part"}]
    assert rows
    for row in rows:
        # No test can show that something is not there: that is said by the words of the requirement.
        assert "`test_" in row[4] or row[1] in {"6.2.10", "6.3.6", "6.4.2"}, row[1]
