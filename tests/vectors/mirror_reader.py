"""A second reader of mirrors, from docs/spec/mirror.md alone: `read` for sealed files, `parse` for their content."""

import base64
import json
import math
import re
import struct
from collections import namedtuple

from tests.vectors.sealed_reader import Refused, check, open_file

Array = namedtuple("Array", "kind dtype shape data")
Commit = namedtuple("Commit", "step time kept state arrays")

NAMES = ["arrays", "kept", "rest", "step", "time", "values"]
SIZES = {"bfloat16": 2} | dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), 1)
TYPE = re.compile(
    r"(?:\|[biu]1|[<>][iu][248]|[<>]f(?:2|4|8|16)|[<>]c(?:8|16|32)|\|S[1-9]\d{0,8}|[<>]U[1-9]\d{0,8}"
    r"|[<>][mM]8(?:\[(?:[1-9]\d*)?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)",
    re.ASCII,
)


def count(value):
    check(type(value) is int and 0 <= value < 1 << 63, "format", "count")
    return value


def items(value, length=None):
    check(type(value) is list and length in (None, len(value)), "format", "list")
    return value


def size_of(dtype):
    check(type(dtype) is str and (dtype in SIZES or TYPE.fullmatch(dtype)), "format", "type")
    return SIZES.get(dtype) or int(re.match(r"\d+", dtype[2:])[0]) * (4 if dtype[1] == "U" else 1)


def member(pairs):
    check(len(dict(pairs)) == len(pairs), "format", "two of one name")
    return dict(pairs)


def load(text):
    how = {"parse_constant": lambda word: check(False, "format", word), "object_pairs_hook": member}
    try:
        return json.loads(text.decode("utf-8", "surrogatepass"), **how)
    except (ValueError, RecursionError):
        raise Refused("format", "no JSON") from None


def parse(content, block_size):
    check(len(content) >= 32, "format", "footer")
    *marks, area, size = struct.unpack("<8sIIQQ", content[-32:])
    fine = marks == [b"SRMIRROR", 1, 0] and size <= 256 << 20 and area % block_size == 0
    check(fine and area + size + 32 <= len(content), "format", "footer")
    manifest = load(content[-32 - size : -32])
    check(type(manifest) is dict and sorted(manifest) == NAMES, "format", "members")
    step, time, rest = count(manifest["step"]), manifest["time"], count(manifest["rest"])
    fine = area + rest + size + 32 == len(content) and rest <= len(items(manifest["arrays"])) * block_size
    check(fine and type(time) in (int, float) and math.isfinite(time), "format", "length or time")
    arrays = {}
    for entry in manifest["arrays"]:
        name, kind, dtype, shape, offset, tail = items(entry, 6)
        check(type(name) is type(kind) is str and name not in arrays and len(items(shape)) <= 64, "format", "array")
        length = math.prod(map(count, shape)) * size_of(dtype)
        whole = length // block_size * block_size
        end, stop = count(offset) + whole, area + count(tail) + length - whole
        check(offset % block_size == 0 and end <= area and stop <= area + rest, "format", "place")
        data = content[offset:end] + content[area + tail : stop]
        arrays[name] = Array(kind, dtype, tuple(shape), data)
    kept = {count(items(one, 2)[0]): count(one[1]) for one in items(manifest["kept"])}
    state = value_of(manifest["values"], list(arrays.values()), 0)
    check(type(state) is dict and {type(name) for name in state} <= {str}, "format", "parts")
    return Commit(step, time, kept, state, arrays)


def value_of(value, arrays, depth):
    check(depth <= 65, "format", "depth")
    kind = type(value)
    fine = value.bit_length() <= 8192 if kind is int else kind is float and math.isfinite(value)
    if value is None or kind in (bool, str) or fine:
        return value
    if kind is list:
        return [value_of(part, arrays, depth + 1) for part in value]
    check(kind is dict and len(value) == 1, "format", "value")
    [(tag, inner)] = value.items()
    if tag == "t":
        return tuple(value_of(part, arrays, depth + 1) for part in items(inner))
    if tag == "d":
        pairs = [value_of(items(pair, 2), arrays, depth) for pair in items(inner)]
        check(may_be_key(tuple(key for key, _ in pairs)), "format", "key")
        return member(pairs)
    if tag == "a":
        kind, index = items(inner, 2)
        check(count(index) < len(arrays) and kind in ("scalar", arrays[index].kind), "format", "array")
        check(kind != "scalar" or arrays[index].shape == (), "format", "scalar")
        return arrays[index]._replace(kind=kind)
    check(tag in ("f", "b") and type(inner) is str, "format", "tag")
    if tag == "f" and inner in ("nan", "inf", "-inf"):
        return float(inner)
    if tag == "b":
        check(re.fullmatch("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?", inner), "format", "base64")
        return base64.b64decode(inner)
    check(re.fullmatch("7ff[0-9a-f]{13}|fff[0-9a-f]{13}", inner) and inner[3:] != "0" * 13, "format", "float")
    return struct.unpack(">d", bytes.fromhex(inner))[0]


def may_be_key(value):
    return all(map(may_be_key, value)) if type(value) is tuple else type(value) not in (list, dict)


def read(data, key, anchor=None, step=None):
    slot = open_file(data, key, anchor)
    newest = parse(slot.read(), slot.block_size)
    if step in (None, newest.step):
        return newest
    check(newest.kept.get(step) in {kept[0] for kept in slot.kept}, "usage", "not kept")
    return parse(open_file(data, key, anchor, at=newest.kept[step]).read(), slot.block_size)
