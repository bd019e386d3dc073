"""A file of users as records: one JSON object or one row of CSV each, with the line it stands in."""

import csv
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

from gatepost import strictjson
from gatepost.errors import Problem

Format: TypeAlias = Literal["jsonl", "csv"]
MAX_LINE = 64 * 1024
COLUMNS = frozenset(
    {"id", "username", "hash", "salt", "norm", "pepper", "roles", "profile", "created", "disabled"},
)


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
    """A file, read line by line in bounded memory. ``position``: bytes read so far."""

    def __init__(self, file: BinaryIO, format_: Format) -> None:
        self._file = file
        self._format = format_
        self._line = 0
        self._refused: list[Refusal] = []
        self.position = 0

    def records(self) -> Iterator[Record | Refusal]:
        """What each line says, or why it says nothing."""
        return self._csv() if self._format == "csv" else self._jsonl()

    def _lines(self) -> Iterator[bytes]:
        while line := self._file.readline(MAX_LINE + 1):
            self._line += 1
            self.position += len(line)
            if len(line) <= MAX_LINE:
                yield line
                continue
            self._refused.append(Refusal(self._line, f"the line has more than {MAX_LINE} bytes"))
            while not line.endswith(b"\n") and (line := self._file.readline(MAX_LINE)):
                self.position += len(line)
            yield b""

    def _jsonl(self) -> Iterator[Record | Refusal]:
        for line in self._lines():
            if self._refused:
                yield self._refused.pop()
            elif line.strip():
                yield self._object(line.removeprefix(b"\xef\xbb\xbf") if self._line == 1 else line)

    def _object(self, line: bytes) -> Record | Refusal:
        try:
            fields = strictjson.decode(line)
        except Problem as error:
            return Refusal(self._line, str(error).replace("The body", "the line"))
        if not isinstance(fields, dict):
            return Refusal(self._line, "the line is not a JSON object")
        if unknown := fields.keys() - COLUMNS:
            return Refusal(self._line, f"there is no key {min(unknown)[:40]!r}")
        return Record(self._line, fields)

    def _csv(self) -> Iterator[Record | Refusal]:
        rows = csv.reader(self._text(), strict=True)
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise UnusableFile(f"its first line is not CSV: {error}") from None
        if unknown := set(header) - COLUMNS:
            raise UnusableFile(f"its first line names the column {min(unknown)[:40]!r}, which there is not")
        if "username" not in header or len(set(header)) < len(header):
            raise UnusableFile("its first line must name the columns, each once, username among them")
        while True:
            line = self._line + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield Refusal(line, f"the line is not CSV: {error}")
                continue
            yield from self._refused
            self._refused.clear()
            if row is None:
                return
            if row:
                yield self._row(line, header, row)

    def _text(self) -> Iterator[str]:
        for line in self._lines():
            try:
                yield line.decode("utf-8-sig" if self._line == 1 else "utf-8")
            except UnicodeDecodeError:
                self._refused.append(Refusal(self._line, "the line is not UTF-8"))

    @staticmethod
    def _row(line: int, header: list[str], row: list[str]) -> Record | Refusal:
        if len(row) != len(header):
            return Refusal(line, f"the line has {len(row)} fields instead of {len(header)}")
        fields: dict[str, Any] = {name: value for name, value in zip(header, row, strict=True) if value}
        if "\0" in "".join(row):
            return Refusal(line, "a field contains U+0000")
        fields["roles"] = fields.get("roles", "").split()
        if "profile" in fields:
            try:
                fields["profile"] = strictjson.decode(fields["profile"].encode())
            except Problem as error:
                return Refusal(line, "profile: " + str(error).replace("The body", "it"))
        return Record(line, fields)


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # json.dumps() would make one each time


def dumps(value: Any) -> str:
    """JSON without spaces."""
    return _encoder.encode(value)
