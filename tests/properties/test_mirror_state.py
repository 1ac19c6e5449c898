"""Training states come back as they were, bit for bit; hostile manifests end in an error of ours, and cheaply."""

import itertools
import json
import math
import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strongroom import mirror
from strongroom.errors import FormatError, StrongroomError, UsageError
from strongroom.mirror import Array
from strongroom.mirror.manifest import FOOTER, Manifest, arrange, parse_footer, parse_manifest, unique
from strongroom.mirror.restored import Restored, read_manifest
from strongroom.mirror.state import MAX_INT_BITS, decode, encode
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor, open_sealed
from strongroom.storage import MemoryDirectory, MemoryStorage

KEY = bytes(32)
BLOCK = 4096
MANY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

# Any code point, and surrogates alone and in pairs.
text = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ["\ud83d\ude00", "\udc00\ud800", "a/b", "", "~2"]
)
floats = st.floats() | st.sampled_from([-0.0, math.inf, -math.inf, 5e-324])
nans = st.integers(1, 2**51 - 1).map(lambda bits: struct.unpack(">d", (0xFFF8 << 48 | bits).to_bytes(8, "big"))[0])
integers = st.integers() | st.integers(-(2**MAX_INT_BITS) + 1, 2**MAX_INT_BITS - 1)
dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(endianness="?", min_len=1),
)


@st.composite
def arrays(draw):
    """Of any bytes, so NaNs with payloads too; in any order, and with gaps."""
    dtype = draw(dtypes)
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    count = math.prod(shape)
    if dtype.kind == "U":
        array = np.full(shape, draw(st.text(st.characters(codec="utf-8"), max_size=3)), dtype)
    else:
        seed = draw(st.integers(0, 2**32))
        data = random.Random(seed).randbytes(count * dtype.itemsize)  # noqa: S311
        if dtype.kind == "b":
            data = bytes(byte & 1 for byte in data)
        array = np.frombuffer(bytearray(data), dtype).reshape(shape) if count else np.empty(shape, dtype)
    how = draw(st.sampled_from(["C", "F", "gaps", "backwards"]))
    if how == "F":
        return np.asfortranarray(array)
    if how == "gaps" and array.ndim:
        wide = np.zeros((*shape[:-1], shape[-1] * 2), dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    return array[::-1] if how == "backwards" and array.ndim else array


def _scalar(array):
    return array.reshape(-1)[0] if array.size and array.dtype.kind not in "SU" else np.float32(1.5)


leaves = st.one_of(
    st.none(), st.booleans(), integers, floats, nans, text, st.binary(max_size=20), arrays(), arrays().map(_scalar)
)
keys = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), text, st.binary(max_size=5)),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)
states = st.dictionaries(text, trees, max_size=4)


def same(one, other):
    """Equal in type and in every bit."""
    if isinstance(one, np.ndarray | np.generic):
        fine = type(one) is type(other) or isinstance(one, np.ndarray) is isinstance(other, np.ndarray)
        return fine and (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(a, b) and same(one[a], other[b]) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return one == other


def through_json(state):
    """As in a file, but for the sealing."""
    values, found = encode(state)
    text = json.dumps(values, allow_nan=False, ensure_ascii=False).encode("utf-8", "surrogatepass")
    arrays = [np.frombuffer(bytes(a.data), a.dtype).reshape(a.shape) for _, a in found]

    def make(kind, index):
        return arrays[index][()] if kind == "scalar" else arrays[index]

    return decode(json.loads(text.decode("utf-8", "surrogatepass")), make)


@MANY
@given(states)
@example({"x": [float("nan"), -0.0, np.float64("nan"), True, 1, 1.0]})
@example({"x": np.str_("text"), "y": np.bytes_(b"z"), "z": np.bool_(True)})
@example({"\ud83d\ude00": "\ud83d\ude00"})
@example({"x": {True: 1, 2: 3, "2": 4, 2.5: 5, (1, "a"): 6, b"": 7, None: 8}})
def test_states_come_back_exactly(state):
    assert same(through_json(state), state)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(states, min_size=1, max_size=3), st.sampled_from(["synchronous", "overlapped"]), st.booleans())
def test_states_come_back_exactly_from_a_file(history, mode, delta):
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    options = {"key": KEY, "anchor": anchor, "keep": 3, "block_size": BLOCK, "mode": mode, "delta": delta}
    with mirror.open(directory, **options) as opened:
        for step, state in enumerate(history):
            big = {"big": np.arange(600 * (step + 1)), "again": np.full(2000, step)}
            opened.commit(step, {"state": state, **big})
    with mirror.open(directory, **options) as opened:
        for step in reversed(range(len(history))):
            with opened.restore(step) as restored:
                assert same(restored["state"], history[step])
                assert np.array_equal(restored["big"], np.arange(600 * (step + 1)))
                assert np.array_equal(restored["again"], np.full(2000, step))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "a object, wanted numbers"),
        ({1, 2}, "a set, wanted numbers"),
        (1j, "a complex, wanted numbers"),
        (2**MAX_INT_BITS, "a number of 8193 bits"),
        (np.array([object()]), "an array of object"),
        (np.zeros(1, "f4,f4"), "an array of"),
        (np.ma.masked_array([1, 2], [0, 1]), "a masked array"),
        (Array("x", "<f4", (3,), b"1234"), "an array of 4 bytes, wanted 12"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(value, said):
    with pytest.raises(UsageError, match=f"^part/inner: {said}"):
        encode({"part": {"inner": value}})


def test_what_is_too_deep_is_refused():
    deep = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(UsageError, match="deeper than 64 levels"):
        encode({"part": deep})
    fine = 1
    for _ in range(60):
        fine = (fine,)
    assert through_json({"part": fine}) == {"part": fine}


@given(st.lists(st.sampled_from(["a", "b", "a~2", "a~3", "a~2~2"]), max_size=8))
def test_names_are_made_unique(names):
    made = unique(names)
    assert len(set(made)) == len(made) == len(names)
    assert made[:1] == names[:1]
    assert unique(made) == made


@given(
    st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5 * BLOCK), max_size=6), min_size=1, max_size=5)
)
def test_arrays_never_lie_on_one_another(history):
    layout = None
    for sizes in history:
        wanted = [mirror.manifest.Wanted(name, "numpy", "|u1", (size,), size) for name, size in sizes.items()]
        before = {entry.name: entry for entry in layout.entries} if layout else {}
        layout = arrange(wanted, BLOCK, layout)
        used = sorted((entry.offset, entry.offset + entry.whole) for entry in layout.entries if entry.whole)
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(used))
        assert layout.area == max((stop for _, stop in used), default=0)
        rests = sorted((entry.tail, entry.tail + entry.nbytes - entry.whole) for entry in layout.entries)
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(rests))
        assert all(stop <= layout.rest for _, stop in rests)
        for entry in layout.entries:  # what is as large as it was stays where it was
            old = before.get(entry.name)
            if old and entry.whole and old.whole == entry.whole:
                assert entry.offset == old.offset


# Hostile manifests.


def good_content():
    state = {
        "model": {"w": np.arange(1500.0), "b": np.ones(3, np.float32), "n": np.float32(2)},
        "more": [1, 2.5, None, "text", b"bytes", (1, {"k": float("inf")}), {(1, 2): 3}],
    }
    values, found = encode(state)
    wanted = [
        mirror.manifest.Wanted(name, array.kind, array.dtype, array.shape, memoryview(array.data).nbytes)
        for name, array in found
    ]
    layout = arrange(wanted, BLOCK)
    return Manifest(3, 1.5, layout, values, ((1, 1), (2, 2))).to_bytes(), layout


GOOD, LAYOUT = good_content()
BODY = GOOD[: -FOOTER.size]


def judge(body, *, area=None, rest=None, footer=None):
    """What becomes of a content with this manifest: read whole, or an error of ours; never much memory."""
    area = LAYOUT.area if area is None else area
    rest = LAYOUT.rest if rest is None else rest
    end = FOOTER.pack(*(footer or (b"SRMIRROR", 1, 0, area, len(body))))
    storage = MemoryStorage()
    tracemalloc.start()
    try:
        with open_sealed(storage, "x", key=KEY, anchor=NO_FRESHNESS, block_size=BLOCK) as file:
            file.truncate(area + rest)
            file.write_at(area + rest, body + end)
            file.commit()
            restored = Restored(file, read_manifest(file), owned=False)
            for name in restored:
                restored[name]
            for name in restored.arrays:
                restored.array(name)
        return restored
    except StrongroomError:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (64 << 20)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(
            ["<f4", "|O", "|u1", "<U99999999", "bfloat16", "numpy", "scalar", "model/w", "d", "a", "t", "f"]
        ),
        text,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.sampled_from("dtfbax"), inner, min_size=1, max_size=2)
    ),
    max_leaves=10,
)


@st.composite
def mutations(draw):
    """The good manifest with some places of its tree replaced by anything."""
    tree = json.loads(BODY)
    for _ in range(draw(st.integers(1, 3))):
        node, path = tree, []
        while isinstance(node, dict | list) and node and (not path or draw(st.booleans())):
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            path.append((node, key))
            node = node[key]
        if path:
            parent, key = path[-1]
            parent[key] = draw(json_values)
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")


def test_the_good_manifest_is_read():
    assert judge(BODY).step == 3


@MANY
@given(mutations())
def test_mutated_manifests(body):
    judge(body)


@MANY
@given(st.binary(max_size=200) | st.integers(0, len(BODY) - 1).map(lambda cut: BODY[:cut]))
@example(b"")
@example(b"1" * 5000)
@example(b'"' + b"\\u0000" * 100 + b'"')
def test_bytes_that_are_no_manifest(body):
    assert judge(body) is None


@MANY
@given(st.integers(0, len(BODY) * 8 - 1))
def test_bits_of_a_manifest(bit):
    body = bytearray(BODY)
    body[bit // 8] ^= 1 << bit % 8
    judge(bytes(body))


@MANY
@given(
    st.tuples(
        st.just(b"SRMIRROR") | st.binary(min_size=8, max_size=8),
        st.sampled_from([1, 1, 1, 0, 2]),
        st.sampled_from([0, 0, 0, 1]),
        st.integers(0, 2**64 - 1) | st.integers(0, 5).map(lambda n: n * BLOCK),
        st.integers(0, 2**64 - 1) | st.integers(0, len(GOOD) + 50),
    )
)
def test_any_footer(fields):
    judge(BODY, footer=fields)


@given(st.binary(max_size=64), st.integers(0, 100))
def test_footers_of_any_bytes(data, length):
    with pytest.raises(FormatError):
        parse_footer(data, length)


@pytest.mark.parametrize(
    "values",
    [
        b'{"d":[["a",' + b"[" * 100_000 + b"]" * 100_000 + b"]]}",
        b'{"d":[["a",' + b'{"t":[' * 50_000 + b"]}" * 50_000 + b"]]}",
        b'{"d":[["a",' + b'{"d":[[' * 70 + b"1,1" + b"]]}" * 70 + b"]]}",
        b'{"d":[["a",' + b"9" * 100_000 + b"]]}",
        b'{"d":[["a",' + b"9" * 3000 + b"]]}",
        b'{"d":[["a",1e999]]}',
        b'{"d":[["a",-Infinity]]}',
        b'{"d":[["a",{"a":["scalar",99999999999999999999]}]]}',
        b'{"d":[["a",{"a":["numpy",-1]}]]}',
        b'{"d":[["a",{"f":"nan","f":"inf"}]]}',
        b'{"d":[["a",{"b":"A"}]]}',
        b'{"d":[["a",{"d":[[{"a":["numpy",0]},1]]}]]}',
        b'{"d":[["a",1],["a",2]]}',
    ],
    ids=range(13),
)
def test_hostile_values(values):
    start, rest = BODY.split(b'"values":')
    body = start + b'"values":' + values + b',"kept":[]}'
    assert rest.endswith(b'"kept":[[1,1],[2,2]]}')
    assert judge(body) is None


@pytest.mark.parametrize(
    "array",
    [
        ["x", "numpy", "<f4", [2**31, 2**31], 0, 0],
        ["x", "numpy", "<f4", [2**62, 4], 0, 0],
        ["x", "numpy", "|u1", [2**63 - 1] * 64, 0, 0],
        ["x", "numpy", "|u1", [2**62] * 100_000, 0, 0],
        ["x", "numpy", "|u1", [1] * 65, 0, 0],
        ["x", "numpy", "<f4", [0, 2**63 - 1], 0, 0],
        ["x", "numpy", "|u1", [0, 2**62, 2**62], 0, 0],
        ["x", "numpy", "<U2147483647", [1], 0, 0],
        ["x", "numpy", "<U99999999999999999999", [1], 0, 0],
        ["x", "numpy", "|V8", [1], 0, 0],
        ["x", "numpy", "|O", [1], 0, 0],
        ["x", "numpy", "f4,(1000000,1000000)f8", [1], 0, 0],
        ["x", "numpy", "(" * 5000, [1], 0, 0],
        ["x", "numpy", "<M8[" + "9" * 50 + "s]", [1], 0, 0],
        ["x", "numpy", "|u1", [16], 2**63 - 1, 0],
        ["x", "numpy", "|u1", [16], 0, 2**63 - 1],
        ["x", "numpy", "|u1", [-1, -16], 0, 0],
        ["x", "numpy", "|u1", [4096], 8, 0],
    ],
    ids=range(18),
)
def test_hostile_arrays(array):
    body = json.dumps({"step": 1, "time": 0, "rest": 16, "arrays": [array], "values": {"d": []}, "kept": []}).encode()
    assert judge(body, area=BLOCK, rest=16) is None


def test_a_rest_that_is_a_hole_without_end_is_not_read():
    """A sparse file may be as long as one likes: what no array names is not asked for."""
    size = 1 << 50
    array = ["x", "numpy", "|u1", [1], 0, 0]
    raw = {"step": 1, "time": 0, "rest": size, "arrays": [array], "values": {"d": []}, "kept": []}
    assert judge(json.dumps(raw).encode(), area=0, rest=size) is None


@MANY
@given(json_values)
def test_decode_of_anything(value):
    try:
        decode(value, lambda kind, index: (kind, index))
    except FormatError:
        return


@MANY
@given(st.binary(max_size=300))
def test_manifests_of_any_bytes(body):
    with pytest.raises(FormatError):
        parse_manifest(body, area=0, length=len(body) + FOOTER.size, block_size=BLOCK)
