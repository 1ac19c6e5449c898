"""Makes the files and the index of this folder: ``python -m tests.vectors.mirror.generate``, in the repository's root.

The same bytes come out each time. ``.content`` is what a sealed file with blocks of 4 KiB holds, ``.sealed`` such a
file. All is built by hand here, so that it can be wrong in ways in which no writer of ours makes it wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

from strongroom.sealed.layout import HOLE, Commit
from tests.vectors.mirror_reader import Array
from tests.vectors.sealed.generate import BLOCK, KEY, File, after

FOLDER = Path(__file__).parent
NOW = 1_700_000_000.5
FOOTER = struct.Struct("<8sIIQQ")

Vector = dict[str, object]


def content(
    values: object,
    arrays: list[object] = (),  # type: ignore[assignment]
    places: bytes = b"",
    rest: bytes = b"",
    *,
    footer: tuple[object, ...] = (),
    body: bytes | None = None,
    **members: object,
) -> bytes:
    """A content: the blocks of arrays, the rest of them, the manifest and the footer."""
    manifest = {"step": 3, "time": NOW, "rest": len(rest), "arrays": [*arrays], "values": values, "kept": []} | members
    manifest = {name: value for name, value in manifest.items() if value is not None}
    if body is None:
        text = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False)
        body = text.encode("utf-8", "surrogatepass")
    fields = dict(enumerate((b"SRMIRROR", 1, 0, len(places), len(body)))) | dict(footer)  # type: ignore[arg-type]
    return places + rest + body + FOOTER.pack(*fields.values())


def d(**parts: object) -> dict[str, object]:
    return {"d": [[name, part] for name, part in parts.items()]}


def sealed(name: str, versions: list[tuple[bytes, list[int]]]) -> tuple[File, list[str]]:
    """A file with a commit for each content, which retains the versions listed; and their roots."""
    file, place, commit, kept = File(name), 4, None, {}
    roots = []
    for data, retained in versions:
        pointers = []
        for index in range(-(-len(data) // BLOCK)):
            block = data[index * BLOCK : (index + 1) * BLOCK]
            pointers.append(file.block(place, index, block) if any(block) else HOLE)
            place += 1
        pointer = pointers[0]
        if len(pointers) > 1:
            pointer, place = file.block(place, 0, b"".join(pointers), level=1), place + 1
        fields = {"pointer": pointer, "length": len(data), "places": place}
        fields["retained"] = tuple(kept[sequence] for sequence in retained)
        commit = after(file, commit, **fields) if commit else Commit(1, len(data), place, pointer, None)
        kept[commit.sequence] = commit.as_retained(file.header)
        roots.append(str(file.slot((commit.sequence - 1) % 4, commit)))
    return file, roots


def digest(data: bytes) -> str:
    return data.hex() if len(data) <= 16 else hashlib.sha256(data).hexdigest()[:32]


def describe(value: Any) -> str:
    """A state as the index has it: exact to the bit and to the type, but for the digests of long arrays."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{describe(key)}: {describe(part)}" for key, part in value.items()) + "}"
    if isinstance(value, Array):
        return f"{value.kind} {value.dtype} {value.shape} {digest(value.data)}"
    if isinstance(value, (list, tuple)):
        parts = ", ".join(map(describe, value))
        return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' * (len(value) == 1)})"
    if isinstance(value, float):
        return f"nan {struct.pack('>d', value).hex()}" if math.isnan(value) else value.hex()
    return ascii(value)


class Index:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.vectors: list[Vector] = []

    def good(self, name: str, data: bytes, state: str, *, why: str) -> None:
        self.files[f"{name}.content"] = data
        self.vectors.append({"name": name, "why": why, "file": f"{name}.content", "state": state})

    def bad(self, name: str, data: bytes, *, why: str) -> None:
        self.files[f"{name}.content"] = data
        self.vectors.append({"name": name, "why": why, "file": f"{name}.content", "refused": "format"})

    def whole(self, name: str, file: str, *, why: str, **how: object) -> None:
        self.vectors.append({"name": name, "why": why, "file": f"{file}.sealed", "key": KEY.hex()} | how)


def make() -> tuple[dict[str, bytes], list[Vector]]:
    """The files by name, and the index."""
    index = Index()
    _states(index)
    _footers(index)
    _manifests(index)
    _arrays(index)
    _values(index)
    _sealed(index)
    return index.files, index.vectors


def _states(index: Index) -> None:
    index.good("empty", content(d()), "{}", why="no part at all")
    plain = d(a=None, b=True, c=-1, d=2**200, e=0.1, f=-0.0, g=1e300, h="text", i=[], j=[1, [2]])
    index.good(
        "plain_values",
        content(plain),
        "{'a': None, 'b': True, 'c': -1, 'd': 1606938044258990275541962092341162602522202993782792835301376, "
        "'e': 0x1.999999999999ap-4, 'f': -0x0.0p+0, 'g': 0x1.7e43c8800759cp+996, 'h': 'text', 'i': [], 'j': [1, [2]]}",
        why="what JSON has itself; a number with a point or an exponent is a float, another is an integer",
    )
    tagged = d(
        a={"t": [1, {"t": []}]},
        b={"d": [[1, 2], [None, 3], [{"t": [1, 2]}, 4], [{"b": "AA=="}, 5]]},
        c={"b": base64.b64encode(bytes(range(5))).decode()},
        e=[{"f": "inf"}, {"f": "-inf"}, {"f": "nan"}, {"f": "fff8000000000000"}, {"f": "7ff0000000000001"}],
    )
    index.good(
        "tagged_values",
        content(tagged),
        "{'a': (1, ()), 'b': {1: 2, None: 3, (1, 2): 4, b'\\x00': 5}, 'c': b'\\x00\\x01\\x02\\x03\\x04', "
        "'e': [inf, -inf, nan 7ff8000000000000, nan fff8000000000000, nan 7ff0000000000001]}",
        why="what JSON has not",
    )
    text = {"d": [["größe", "π"], ["a", "\ud83d\ude00"], ["b", "\ud800"]]}
    index.good(
        "surrogates",
        content(text),
        "{'gr\\xf6\\xdfe': '\\u03c0', 'a': '\\ud83d\\ude00', 'b': '\\ud800'}",
        why="text in UTF-8; two surrogates beside one another stay two",
    )
    block, part = bytes(range(256)) * 16, b"end of it"
    arrays = [
        ["w/big", "numpy", "|u1", [4105], BLOCK, 0],
        ["w/other", "torch", "bfloat16", [2, 1024], 0, 0],
        ["w/none", "numpy", ">f8", [0, 3], 0, 16],
        ["w/zero-d", "numpy", ">f8", [], 0, 16],
        ["scalar", "numpy", "<f4", [], 0, 32],
        ["named by no value", "numpy", "<U1", [1], 0, 48],
    ]
    rest = part.ljust(16, b"\0") + struct.pack(">d", 1.5) + bytes(8) + struct.pack("<f", 2.5) + bytes(12) + b"x\0\0\0"
    values = d(
        w=d(big={"a": ["numpy", 0]}, other={"a": ["torch", 1]}, none={"a": ["numpy", 2]}, zero={"a": ["numpy", 3]}),
        scalar={"a": ["scalar", 4]},
        again={"a": ["torch", 1]},
    )
    index.good(
        "arrays",
        content(values, arrays, block[::-1] + block, rest),
        "{'w': {'big': numpy |u1 (4105,) " + digest(block + part) + ", "
        "'other': torch bfloat16 (2, 1024) " + digest(block[::-1]) + ", 'none': numpy >f8 (0, 3) , "
        "'zero': numpy >f8 () 3ff8000000000000}, 'scalar': scalar <f4 () 00002040, "
        "'again': torch bfloat16 (2, 1024) " + digest(block[::-1]) + "}",
        why="in blocks of their own, in the rest, or both; empty, without dimensions, big-endian",
    )


def _footers(index: Index) -> None:
    index.bad("no_footer", b"the content of some other sealed file, which is long enough", why="no mirror")
    index.bad("too_short", content(d())[-31:], why="shorter than a footer")
    index.bad("version_2", content(d(), footer=((1, 2),)), why="a version of the future")
    index.bad("reserved", content(d(), footer=((2, 1),)), why="a field that is zero is not")
    index.bad("manifest_longer_than_file", content(d(), footer=((4, 4096),)), why="begins before the file")
    index.bad("manifest_shorter", content(d(), footer=((4, 40),)), why="begins in the middle of it")
    index.bad("area_behind_end", content(d(), footer=((3, 4096),)), why="the tail begins behind the end")
    index.bad("area_huge", content(d(), footer=((3, 2**64 - 64),)), why="a sum that overflows 64 bits")
    odd = content(d(), [["a", "numpy", "|u1", [1], 0, 0]], bytes(100), b"x")
    index.bad("area_in_a_block", odd, why="the tail begins within a block")


def _manifests(index: Index) -> None:
    index.bad("not_json", content(d(), body=b'{"step":3'), why="cut JSON")
    index.bad("not_utf_8", content(d(), body=content(d(a="?"))[:-32].replace(b"?", b"\xff")), why="a byte of no text")
    index.bad("nan", content(d(a=float("nan"))), why="a word that JSON has not")
    twice = content(d())[:-32].replace(b'{"step":3,', b'{"step":2,"step":3,')
    index.bad("member_twice", content(d(), body=twice), why="two members of one name")
    index.bad("member_missing", content(d(), kept=None), why="no `kept`")
    index.bad("member_unknown", content(d(), more=1), why="a member of the future")
    index.bad("step_negative", content(d(), step=-1), why="a step below 0")
    index.bad("step_float", content(d(), step=3.0), why="a step with a point")
    index.bad("step_true", content(d(), step=True), why="a step that is no number")
    index.bad("step_too_large", content(d(), step=2**63), why="a step of 2^63")
    index.bad("time_text", content(d(), time="now"), why="a time that is no number")
    forever = content(d())[:-32].replace(b"1700000000.5", b"1e999")
    index.bad("time_infinite", content(d(), body=forever), why="a time that no float can be")
    index.bad("kept_one", content(d(), kept=[[1]]), why="a kept commit without a sequence")
    one = [["a", "numpy", "|u1", [1], 0, 0]]
    less = content(d(), one, b"", bytes(32))[:-32].lstrip(b"\0").replace(b'"rest":32', b'"rest":16')
    index.bad("rest_other", content(d(), one, b"", bytes(32), body=less), why="bytes between the rest and the manifest")
    index.bad("rest_too_long", content(d(), one, b"", bytes(BLOCK + 1)), why="more than the arrays can leave")


def _arrays(index: Index) -> None:
    def bad(name: str, why: str, *arrays: list[object], places: bytes = b"", rest: bytes = bytes(16)) -> None:
        index.bad(name, content(d(), list(arrays), places, rest), why=why)

    bad("array_short", "an array without a tail", ["a", "numpy", "|u1", [1], 0])
    bad("array_name_number", "a name that is no text", [1, "numpy", "|u1", [1], 0, 0])  # type: ignore[list-item]
    bad("type_of_objects", "an array of Python objects", ["a", "numpy", "|O", [1], 0, 0])
    bad("type_spelled_otherwise", "`float32` in place of `<f4`", ["a", "numpy", "float32", [1], 0, 0])
    bad("type_of_records", "a type with a comma", ["a", "numpy", "<f4,<f4", [1], 0, 0])
    bad("type_without_order", "`=f4`", ["a", "numpy", "=f4", [1], 0, 0])
    bad("shape_negative", "a dimension below 0", ["a", "numpy", "|u1", [-1], 0, 0])
    bad("shape_overflows", "2^64 bytes", ["a", "numpy", "|u1", [2**32, 2**32], 0, 0])
    bad("dimensions_65", "more dimensions than 64", ["a", "numpy", "|u1", [1] * 65, 0, 0])
    bad("offset_in_a_block", "not at a block", ["a", "numpy", "|u1", [BLOCK], 16, 0], places=bytes(2 * BLOCK))
    bad("offset_behind_area", "in the tail", ["a", "numpy", "|u1", [2 * BLOCK], 0, 0], places=bytes(BLOCK))
    bad("tail_behind_rest", "in the manifest", ["a", "numpy", "|u1", [16], 0, 1])
    bad("name_twice", "two arrays of one name", ["a", "numpy", "|u1", [1], 0, 0], ["a", "numpy", "|u1", [1], 0, 0])


def _values(index: Index) -> None:
    array = ["a", "numpy", "|u1", [2], 0, 0]

    def bad(name: str, why: str, value: object) -> None:
        index.bad(name, content(d(part=value), [array], b"", b"ab"), why=why)

    index.bad("values_list", content([1]), why="a state that is no dict")
    index.bad("part_number", content({"d": [[1, 2]]}), why="a part whose name is no text")
    index.bad("part_twice", content({"d": [["a", 1], ["a", 2]]}), why="two parts of one name")
    bad("tag_unknown", "a tag of the future", {"x": 1})
    bad("tags_two", "an object with two members", {"t": [], "d": []})
    bad("tag_none", "an object without a member", {})
    bad("tuple_text", "a tuple that is no list", {"t": "ab"})
    bad("pair_of_three", "an entry of a dict with three parts", {"d": [[1, 2, 3]]})
    bad("key_list", "a key that is a list", {"d": [[[1], 2]]})
    bad("key_list_in_tuple", "a key that is a tuple with a list in it", {"d": [[{"t": [[1]]}, 2]]})
    bad("key_twice", "two entries of one key", {"d": [[1, 2], [1, 3]]})
    bad("float_finite", "a finite float as text", {"f": "1.5"})
    bad("float_bits_finite", "bits of a number", {"f": "3ff8000000000000"})
    bad("bytes_not_base64", "a character that base64 lacks", {"b": "A-=="})
    bad("integer_of_8193_bits", "an integer that is too large", 2**8192)
    bad("array_unknown", "an index behind the arrays", {"a": ["numpy", 1]})
    bad("array_negative", "an index below 0", {"a": ["numpy", -1]})
    bad("array_of_another_kind", "a kind that the array is not of", {"a": ["torch", 0]})
    bad("scalar_of_two", "a scalar with a dimension", {"a": ["scalar", 0]})
    deep: object = 1
    for _ in range(300):
        deep = [deep]
    bad("deep", "300 lists in one another", deep)
    data = content(d(a=7))[:-32].replace(b"7]", b"1e999]")
    index.bad("float_overflows", content(d(), body=data), why="a number that no float can be")


def _sealed(index: Index) -> None:
    def commit(step: int, kept: list[list[int]]) -> bytes:
        block = bytes([step]) * BLOCK
        array = ["model/w", "numpy", "|u1", [BLOCK + 5], 2 * BLOCK, 0]
        value = {"a": ["numpy", 0]}
        places = bytes(2 * BLOCK) + block
        return content(d(model=d(w=value), loss=1 / step), [array], places, b"rest!", step=step, kept=kept)

    versions = [
        (commit(10, []), []),
        (commit(20, [[10, 1]]), [1]),
        (commit(30, [[10, 1], [20, 2]]), [1, 2]),
        (commit(40, [[10, 1], [20, 2], [30, 3]]), [1, 3]),
    ]
    file, roots = sealed("kept", versions)
    index.files["kept.sealed"] = bytes(file.data)
    states = {
        step: f"{{'model': {{'w': numpy |u1 (4101,) {digest(bytes([step]) * BLOCK + b'rest!')}}}, "
        f"'loss': {(1 / step).hex()}}}"
        for step in (10, 20, 30, 40)
    }
    index.whole("newest", "kept", state=states[40], anchor=roots[3], why="the newest of four commits")
    index.whole("kept_first", "kept", state=states[10], anchor=roots[3], step=10, why="the first, which is retained")
    index.whole("kept_third", "kept", state=states[30], step=30, why="the one before the newest")
    released = "the manifest names it still, the slot does not"
    index.whole("released", "kept", refused="usage", step=20, why=released)
    index.whole("no_such_step", "kept", refused="usage", step=25, why="a step of no commit")
    index.whole(
        "rolled_back", "kept", refused="rollback", anchor=roots[3].replace("4:", "5:"), why="the anchor is ahead"
    )
    file.data[6 * BLOCK] ^= 1
    index.files["block_bit.sealed"] = bytes(file.data)
    index.whole("block_bit_elsewhere", "block_bit", state=states[40], why="of an older commit: this one is whole")
    index.whole("block_bit", "block_bit", refused="tampered", step=10, why="a bit of an array of that commit")


if __name__ == "__main__":
    files, vectors = make()
    for old in [*FOLDER.glob("*.content"), *FOLDER.glob("*.sealed")]:
        old.unlink()
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
    (FOLDER / "index.json").write_text(json.dumps(vectors, indent=1) + "\n")
