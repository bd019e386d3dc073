"""A set of hashes in a file, in 1.28 bytes each, asked without reading it: an Elias-Fano code of their upper bits.

A hash of 64 bits is scaled to one of ``256 x entries`` values, which keeps the order. The low byte of each value is
kept in a row; the rest as a string of bits: for each possible upper part in turn, a 1 for each value that has it, and
a 0. 256 upper parts and their values are a *bucket*; an index says how many values come before each. A hash in the
set is always found; one that is not in it is found with a chance of one in 256.

Not a binary fuse filter, whose size and chance are the same: the library that makes them (pyfusefilter 1.3) has no
wheels for Python 3.14, keeps all of it in the memory of each process, and reads a file without checking its bounds.
"""

import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_MAGIC = b"gatepost breached 1\n"
_HEADER = struct.Struct("<20sQ4x")
_INDEX = struct.Struct("<Q")
# Upper parts in one bucket, and values for each on average one.
_PARTS = 256
# Values in one bucket at most. Of hashes there are 256, give or take 16; more would make a look-up slow.
_MOST = 1024


class BadFile(Exception):
    """The file is no such set, or none can be made of these hashes; the message says why."""


class _Layout:
    """Where what stands in a file of so many entries."""

    def __init__(self, entries: int) -> None:
        self.parts = max(_PARTS, entries)
        self.buckets = -(-self.parts // _PARTS)
        self.index = _HEADER.size
        self.lows = self.index + _INDEX.size * (self.buckets + 1)
        self.bits = self.lows + entries
        self.size = self.bits + -(-(entries + self.buckets * _PARTS) // 8)

    def value(self, key: int) -> int:
        """What a hash of 64 bits is scaled to."""
        return key * self.parts * 256 >> 64


class HashSet:
    """The set in a file that `build` has made. Only those pages of the file are read that are asked for."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises BadFile, OSError."""
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(_MAGIC):
                raise BadFile("is no file of `gatepost breached build`")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _, self.entries = _HEADER.unpack(header)
        self._layout = _Layout(self.entries)
        if len(self._map) != self._layout.size:
            self.close()
            raise BadFile("is not complete: build it again")

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()

    def __contains__(self, key: int) -> bool:
        """Whether this hash of 64 bits is in the set."""
        value = self._layout.value(key)
        part, low = value >> 8, value & 0xFF
        bucket = part // _PARTS
        before, after = (self._before(number) for number in (bucket, bucket + 1))
        if not 0 <= after - before <= _MOST:  # a file that was changed by hand
            return False
        first, length = before + bucket * _PARTS, after - before + _PARTS
        octets = self._map[self._layout.bits + first // 8 : self._layout.bits + (first + length + 7) // 8]
        bits = int.from_bytes(octets, "little") >> first % 8
        runs = f"{bits & (1 << length) - 1:0{length}b}"[::-1].split("0", part % _PARTS + 1)
        start = self._layout.lows + before + sum(map(len, runs[: part % _PARTS]))
        return low in self._map[start : start + len(runs[part % _PARTS])]

    def _before(self, bucket: int) -> int:
        (number,) = _INDEX.unpack_from(self._map, self._layout.index + _INDEX.size * bucket)
        return int(number)


def build(keys: Iterable[int], entries: int, path: Path) -> None:
    """Write the set of ``keys``, hashes of 64 bits in ascending order, of which there are ``entries``.

    The memory that it takes does not depend on how many there are. The file appears as a whole or not at all. Raises
    BadFile, OSError.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("w+b") as file:
            layout = _Layout(entries)
            file.truncate(layout.size)
            with mmap.mmap(file.fileno(), layout.size) as target:
                _fill(target, layout, keys, entries)
                target.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _fill(target: mmap.mmap, layout: _Layout, keys: Iterable[int], entries: int) -> None:
    _HEADER.pack_into(target, 0, _MAGIC, entries)
    bucket = count = last = 0
    lows = bytearray()
    ones: list[int] = []

    def finish_bucket() -> None:
        if len(lows) > _MOST:
            raise BadFile("these are no SHA-1 hashes: they do not lie evenly")
        before = count - len(lows)
        target[layout.lows + before : layout.lows + count] = bytes(lows)
        _INDEX.pack_into(target, layout.index + _INDEX.size * (bucket + 1), count)
        first, length = before + bucket * _PARTS, len(lows) + _PARTS
        start, shift = divmod(first, 8)
        bits = 0
        for position in ones:
            bits |= 1 << position
        end = layout.bits + start + (shift + length + 7) // 8
        # The first byte may hold the last bits of the bucket before.
        octets = bytearray((bits << shift).to_bytes(end - layout.bits - start, "little"))
        octets[0] |= target[layout.bits + start]
        target[layout.bits + start : end] = bytes(octets)
        lows.clear()
        ones.clear()

    for key in keys:
        value = layout.value(key)
        if value < last:
            raise BadFile("the hashes are not in order: sort them first (LC_ALL=C sort)")
        last, part = value, value >> 8
        while part // _PARTS > bucket:
            finish_bucket()
            bucket += 1
        ones.append(part % _PARTS + len(lows))
        lows.append(value & 0xFF)
        count += 1
    while bucket < layout.buckets:
        finish_bucket()
        bucket += 1
    if count != entries:
        raise BadFile("the list changed while it was read")
