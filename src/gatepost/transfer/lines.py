"""A file of users as records: one JSON object or one row of CSV each, with the line it stands in."""

import csv
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

from gatepost.errors import Problem
from gatepost.http import strict_json

Format: TypeAlias = Literal["jsonl", "csv", "json"]
MAX_LINE = 64 * 1024
# Lines of one row of CSV: a profile may be written over several. Each line is read as often as that at most, since
# after what is no row the next line is read anew.
MAX_ROW_LINES = 100
COLUMNS = frozenset(
    {
        "id",
        "username",
        "email",
        "email_verified",
        "emails",
        "hash",
        "salt",
        "norm",
        "pepper",
        "roles",
        "profile",
        "created",
        "disabled",
    },
)
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Refusal(NamedTuple):
    """A line that is not taken, and why; the reason never repeats a hash."""

    line: int
    reason: str


class Record(NamedTuple):
    """What a line says, not yet judged."""

    line: int
    fields: dict[str, Any]


class UnusableFile(Exception):
    """The file as a whole cannot be read; the message says why."""


class Source:
    """A file, read line by line in bounded memory. ``position``: bytes read so far.

    ``convert``: gives what a record of another service's export says in the names of ours. The format `json` is one
    object whose ``users`` are the records.
    """

    def __init__(
        self, file: BinaryIO, format_: Format, convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    ) -> None:
        self._file = file
        self._format = format_
        self._convert = convert
        self._line = 0
        self.position = 0

    def records(self) -> Iterator[Record | Refusal]:
        """What each line says, or why it says nothing."""
        match self._format:
            case "csv":
                return self._csv()
            case "json":
                return self._elements()
            case _:
                return self._jsonl()

    def read(self, size: int) -> bytes:
        """For a parser: the next bytes of the file."""
        piece = self._file.read(size)
        self.position += len(piece)
        return piece

    def _elements(self) -> Iterator[Record | Refusal]:
        # Imported here: only these files need it.
        import ijson  # noqa: PLC0415

        try:
            for element in ijson.items(self, "users.item", use_float=True):
                self._line += 1
                yield self._judged(element)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise UnusableFile(f"after {self._line} users it is not JSON: {str(error).splitlines()[0]}") from None
        if not self._line:
            raise UnusableFile("it is no JSON object with a list of users")

    def _judged(self, value: Any) -> Record | Refusal:
        try:
            if not isinstance(value, dict):
                return Refusal(self._line, "is not a JSON object")
            strict_json.refuse_bad_characters(value)
            if len(strict_json.encode(value)) > MAX_LINE:
                return Refusal(self._line, f"has more than {MAX_LINE} characters")
        except Problem as error:
            return Refusal(self._line, str(error).replace("The body", "it"))
        except RecursionError:
            return Refusal(self._line, "is nested too deeply")
        return Record(self._line, self._converted(value))

    def _converted(self, fields: dict[str, Any]) -> dict[str, Any]:
        return self._convert(fields) if self._convert else fields

    def _lines(self) -> Iterator[bytes | Refusal]:
        while line := self._file.readline(MAX_LINE + 1):
            self._line += 1
            self.position += len(line)
            if len(line) <= MAX_LINE:
                yield line
                continue
            while not line.endswith(b"\n") and (line := self._file.readline(MAX_LINE)):
                self.position += len(line)
            yield Refusal(self._line, f"the line has more than {MAX_LINE} bytes")

    def _jsonl(self) -> Iterator[Record | Refusal]:
        for line in self._lines():
            if isinstance(line, Refusal):
                yield line
            elif line.strip():
                yield self._object(line.removeprefix(b"\xef\xbb\xbf") if self._line == 1 else line)

    def _object(self, line: bytes) -> Record | Refusal:
        try:
            fields = strict_json.decode(line)
        except Problem as error:
            return Refusal(self._line, str(error).replace("The body", "the line"))
        if not isinstance(fields, dict):
            return Refusal(self._line, "the line is not a JSON object")
        if self._convert is None and (unknown := fields.keys() - COLUMNS):
            return Refusal(self._line, f"there is no key {min(unknown)[:40]!r}")
        return Record(self._line, self._converted(fields))

    def _csv(self) -> Iterator[Record | Refusal]:
        rows = iter(_Rows(self._text()))
        first = next(rows, (1, []))
        if isinstance(first, Refusal):
            raise UnusableFile(first.reason.replace("the line", "its first line"))
        _, header = first
        for number, name in enumerate(header if self._convert is None else (), 1):
            if name not in COLUMNS:  # not quoted: in a file without a header it may be a hash
                known = ", ".join(sorted(COLUMNS))
                raise UnusableFile(f"its first line must name the columns; number {number} is none of {known}")
        needed = "username" if self._convert is None else "email"
        if needed not in header or len(set(header)) < len(header):
            raise UnusableFile(f"its first line must name the columns, each once, {needed} among them")
        for row in rows:
            yield row if isinstance(row, Refusal) else self._row(row[0], header, row[1])

    def _text(self) -> "Iterator[_Line]":
        for line in self._lines():
            if isinstance(line, Refusal):
                yield _Line(self._line, "", line)
                continue
            try:
                yield _Line(self._line, line.decode("utf-8-sig" if self._line == 1 else "utf-8"))
            except UnicodeDecodeError:
                yield _Line(self._line, "", Refusal(self._line, "the line is not UTF-8"))

    def _row(self, line: int, header: list[str], row: list[str]) -> Record | Refusal:
        if len(row) != len(header):
            return Refusal(line, f"the line has {len(row)} fields instead of {len(header)}")
        fields: dict[str, Any] = {name: value for name, value in zip(header, row, strict=True) if value}
        if "\0" in "".join(row):
            return Refusal(line, "a field contains U+0000")
        if self._convert is not None:
            return Record(line, self._convert(fields))
        fields["roles"] = fields.get("roles", "").split()
        if "email_verified" in fields:
            fields["email_verified"] = _BOOLEANS.get(fields["email_verified"].lower(), fields["email_verified"])
        for name in {"profile", "emails"} & fields.keys():
            try:
                fields[name] = strict_json.decode(fields[name].encode())
            except Problem as error:
                return Refusal(line, f"{name}: " + str(error).replace("The body", "it"))
        return Record(line, fields)


class _Line(NamedTuple):
    """A line of CSV; one that cannot be read has a refusal and no text."""

    number: int
    text: str
    refusal: Refusal | None = None


class _TooLong(Exception):
    """A row goes on for too long; it may be a quote that is not closed."""


class _Rows:
    """Rows of CSV, each with the number of its first line.

    A quote that is not closed would take in all that follows, so a row has at most ``MAX_ROW_LINES`` lines and
    ``MAX_LINE`` characters; and after what is no row, the next line is read anew.
    """

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines = lines
        self._again: deque[_Line] = deque()
        self._taken: list[_Line] = []

    def __iter__(self) -> Iterator[tuple[int, list[str]] | Refusal]:
        rows = csv.reader(self._texts(), strict=True)
        while True:
            self._taken.clear()
            try:
                row = next(rows, None)
            except (csv.Error, _TooLong) as error:
                first, *others = self._taken
                reach = f"; its quote reaches line {others[-1].number}" if others else ""
                yield first.refusal or Refusal(first.number, f"the line is not CSV: {error}{reach}")
                self._again.extendleft(reversed(others))
                rows = csv.reader(self._texts(), strict=True)
                continue
            if row is None:
                return
            refused = [line.refusal for line in self._taken if line.refusal]
            yield from refused
            if row and not refused:
                yield self._taken[0].number, row

    def _texts(self) -> Iterator[str]:
        size = 0
        while True:
            if not self._taken:
                size = 0
            elif len(self._taken) >= MAX_ROW_LINES or size > MAX_LINE:
                raise _TooLong(f"a row has at most {MAX_ROW_LINES} lines and {MAX_LINE} characters")
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None:
                return
            self._taken.append(line)
            size += len(line.text)
            yield line.text
