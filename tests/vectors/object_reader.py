"""A second reader of numbered objects, from docs/spec/objects.md alone. It shares no code with the package.

`read(objects, name)` gives the content of a file, of the objects by their names, or raises `Refused` with the verdict.
"""

import hashlib
import re
import struct


class Refused(Exception):  # noqa: N818
    """The file is refused. The first argument is the verdict, as in the index of the vectors."""


def check(fine, verdict, why):
    if not fine:
        raise Refused(verdict, why)


def full(number):
    return number - (number - 1) % 64


def read(objects, name):
    numbers = [int(other[-10:]) for other in objects if re.fullmatch(re.escape(name) + r"\.[0-9]{10}", other)]
    newest = max(numbers, default=0)
    check(newest > 0, "missing", "no object")
    content = bytearray()
    for number in range(full(newest), newest + 1):
        data = objects.get(f"{name}.{number:010}")
        check(data is not None, "truncated", f"object {number} is missing")
        length, cut, ranges = parse(data, number)
        content[cut:] = b""
        content += bytes(length - len(content))
        for offset, piece in ranges:
            content[offset : offset + len(piece)] = piece
    return bytes(content)


def parse(data, number):
    check(len(data) >= 96, "truncated", "head")
    magic, version, kind, count, own, length, cut = struct.unpack_from("<8sHHIQQQ", data)
    check(magic == b"SROBJECT" and version == 1, "format", "magic or version")
    check(own == number and count <= 1 << 15, "format", "number or count")
    end = 64 + 16 * count
    check(len(data) >= end + 32, "truncated", "ranges")
    check(hashlib.sha256(data[:end]).digest() == data[end : end + 32], "format", "digest")
    check(kind == (1 if full(number) == number else 2), "format", "kind")
    check(cut <= length <= 1 << 60, "format", "length or cut")
    place, least, ranges = end + 32, 0, []
    for offset, size in struct.iter_unpack("<QQ", data[64:end]):
        check(least <= offset and offset + size <= length, "format", "range")
        ranges.append((offset, data[place : place + size]))
        least, place = offset + size, place + size
    check(place == len(data), "truncated", "size")
    return length, cut, ranges
