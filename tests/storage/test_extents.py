"""Which bytes of a numbered file lie where, however hostile the tables of its objects are."""

import contextlib
import random

import pytest

from strongroom.errors import FormatError
from strongroom.storage import ObjectDirectory, numbered
from strongroom.storage.extents import Extent, Extents, layered
from strongroom.storage.numbered import MAX_RANGES, decode, encode

fsspec = pytest.importorskip("fsspec")


def test_layers_against_putting_one_after_another():
    rng = random.Random(4)  # noqa: S311  # a failure must come back
    for _ in range(300):
        layers, slow = [], Extents()
        for number in range(rng.randrange(6)):
            cut, at, ranges = rng.choice([60, rng.randrange(60)]), 0, []
            while (at := at + rng.randrange(12)) < 50:
                size = rng.randrange(9)
                ranges.append(Extent(at, at + size, str(number), 100 * number + at))
                at += size
            layers.append((cut, ranges))
            slow.cut(cut)
            for extent in ranges:
                if extent.start < extent.end:
                    slow.put(extent)
        assert list(layered(layers).pieces(0, 60)) == list(slow.pieces(0, 60))


class _Counted(int):
    """A number that counts how often it is compared."""

    compared = 0

    def __lt__(self, other):
        _Counted.compared += 1
        return int(self) < int(other)

    def __le__(self, other):
        _Counted.compared += 1
        return int(self) <= int(other)

    def __gt__(self, other):
        _Counted.compared += 1
        return int(self) > int(other)


def _interleaved(count: int) -> int:
    """How many comparisons `layered` makes for tables whose ranges lie between each other's, and in each other."""
    layers = []
    for number in range(64):
        ranges = [
            Extent(_Counted(at * 64 + number), _Counted(at * 64 + number + 9), "o", 0) for at in range(count // 64)
        ]
        layers.append((_Counted(1 << 60), ranges))
    _Counted.compared = 0
    assert count // 2 < len(list(layered(layers))) < 2 * count
    return _Counted.compared


def test_interleaved_ranges_take_no_quadratic_time():
    assert _interleaved(16 << 10) < 6 * _interleaved(4 << 10)


def test_more_ranges_than_an_object_may_have():
    head = bytearray(encode(2, 1 << 30, 0, [], b""))
    head[12:16] = (MAX_RANGES + 1).to_bytes(4, "little")
    with pytest.raises(FormatError, match=f"{MAX_RANGES + 1} ranges, wanted at most {MAX_RANGES}"):
        decode(bytes(head), 2, len(head), "o")


def test_too_many_changes_are_written_as_fewer_ranges(monkeypatch):
    monkeypatch.setattr(numbered, "MAX_RANGES", 4)
    memory = fsspec.filesystem("memory", global_store=False, skip_instance_cache=True)
    directory = ObjectDirectory(memory, "/vault", updatable={"meta"})
    wanted = bytearray(range(200))
    with contextlib.closing(directory.open("meta", "x")) as file:
        file.write_at(0, wanted)
        file.sync()
        for at in (0, 10, 12, 14, 50, 52, 90, 150, 199):
            wanted[at] = 255
            file.write_at(at, b"\xff")
        file.sync()
        assert _content(file) == wanted
    with contextlib.closing(directory.open("meta", "r")) as file:
        assert _content(file) == wanted
        assert sum(part.source == "meta.0000000002" for part in file._extents) == 4


def _content(file) -> bytes:
    buffer = bytearray(300)
    return bytes(buffer[: file.read_into(0, buffer)])
