"""Makes the vectors of numbered objects: ``python -m tests.vectors.make_objects`` from the repository's root.

The random bytes of an object are those of its number, so that each run makes the same. `index.json` lists the vectors:
objects by name, in hexadecimal, and either what file `meta` holds (`content`) or the verdict (`refused`).
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

INDEX = Path(__file__).with_name("objects") / "index.json"


def made(
    number: int, length: int, ranges: list[tuple[int, bytes]], *, cut: int = 0, version: int = 1, own: int | None = None
) -> dict[str, bytes]:
    """One object by its name."""
    kind = 1 if number % 64 == 1 else 2
    noise = bytes([number]) * 16
    head = struct.pack(
        "<8sHHIQQQ8x16s", b"SROBJECT", version, kind, len(ranges), own or number, length, cut, noise
    ) + b"".join(struct.pack("<QQ", offset, len(piece)) for offset, piece in ranges)
    data = head + hashlib.sha256(head).digest() + b"".join(piece for _, piece in ranges)
    return {f"meta.{number:010}": data}


def make() -> list[dict[str, object]]:
    """The vectors."""
    first = made(1, 12, [(0, b"Strongroom!!")])
    # Cut to 6, then grown to 16: what lay between is zeros.
    second = made(2, 16, [(0, b"s"), (14, b"ab")], cut=6)
    third = made(3, 4, [], cut=4)
    kept = made(64, 3, [(0, b"old")], cut=3) | made(65, 8, [(2, b"full"), (7, b".")]) | made(66, 8, [(0, b"a ")], cut=8)
    others = {"meta.0000000000": b"none", "meta.00000000099": b"none", "meta": b"none", "metal.0000000099": b"none"}
    bad = {"meta.0000000002": bytes([*second["meta.0000000002"][:70], 1, *second["meta.0000000002"][71:]])}
    short = {"meta.0000000002": second["meta.0000000002"][:-1]}
    vectors: list[tuple[str, dict[str, bytes], bytes | str]] = [
        ("changes and a cut", first | second, b"strong" + bytes(8) + b"ab"),
        ("shorter, beside other objects", first | second | third | others, b"stro"),
        ("from the newest full object on", kept, b"a full\0."),
        ("one missing", first | third, "truncated"),
        ("a damaged head", first | bad, "format"),
        ("cut off", first | short, "truncated"),
        ("a newer version", first | made(2, 1, [], version=2), "format"),
        ("another's number", first | made(2, 12, [], cut=12, own=3), "format"),
        ("overlapping ranges", made(1, 9, [(0, b"abc"), (2, b"d")]), "format"),
        ("a range behind the end", made(1, 9, [(8, b"ab")]), "format"),
    ]
    return [
        {"name": name, "objects": {key: data.hex() for key, data in objects.items()}}
        | ({"refused": wanted} if isinstance(wanted, str) else {"content": wanted.hex()})
        for name, objects, wanted in vectors
    ]


if __name__ == "__main__":
    INDEX.parent.mkdir(exist_ok=True)
    INDEX.write_text(json.dumps(make(), indent=1) + "\n")
