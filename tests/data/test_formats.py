"""Every format: what was written is read, and headers that lie are refused before anything is allocated."""

import gzip
import io
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from strongroom.data import SealedDataset, seal_arrays
from strongroom.errors import FormatError, MissingDependencyError, UsageError
from strongroom.sealed import NO_FRESHNESS, PinnedAnchor, open_sealed
from tests.data import world


def opened(content: bytes, **options) -> SealedDataset:
    return SealedDataset(world.sealed(content), **options)


@pytest.mark.parametrize("kind", world.FORMATS)
def test_reads_what_was_written(kind):
    values = world.arrays()
    content = world.encode(kind, values)
    assert sorted(opened(content).fields) == ["x", "y"]
    dataset = opened(content, fields=["x", "y"])
    assert len(dataset) == 300
    assert dataset.shapes == ((5, 17), ())
    assert dataset.dtypes == (np.float32, np.int64)
    chosen = [299, 0, 7, 7, -1, 150]
    x, y = dataset.__getitems__(chosen).arrays
    assert np.array_equal(x, values["x"][chosen])
    assert np.array_equal(y, values["y"][chosen])
    assert x.dtype == np.float32 and x.flags.writeable and x.flags.c_contiguous
    sample = dataset[3]
    assert np.array_equal(sample[0], values["x"][3]) and sample[1] == values["y"][3]


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_reads_idx(dtype):
    value = np.random.default_rng(1).integers(0, 100, (50, 4, 3)).astype(dtype)
    dataset = opened(world.encode("idx", {"any": value}))
    assert dataset.fields == ("data",)
    assert np.array_equal(dataset.__getitems__(range(50)).arrays[0], value)
    assert dataset.dtypes == (np.dtype(dtype),)


@pytest.mark.parametrize(
    "dtype", [">f4", "<f4", "|b1", ">i8", "<c16", ">c8", "<f2", "|S5", "<U3", ">U3", "<M8[s]", "u8"]
)
def test_reads_npy_of_any_type_in_native_order(dtype):
    value = np.arange(60).reshape(20, 3).astype(dtype)
    dataset = opened(world.encode("npy", {"any": value}))
    (found,) = dataset.__getitems__(range(20)).arrays
    assert np.array_equal(found, value)
    assert found.dtype.isnative


def test_bfloat16_becomes_float32():
    exact = np.array([[1.0, -2.5], [0.15625, 3e38], [np.inf, 0.0]], np.float32)
    exact.view(np.uint32)[:] &= 0xFFFF0000
    header = {"w": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [0, 12]}}
    dataset = opened(world.safetensors_with(header, (exact.view(np.uint32) >> 16).astype("<u2").tobytes()))
    assert dataset.dtypes == (np.float32,)
    assert np.array_equal(dataset.__getitems__([2, 1, 0]).arrays[0], exact[::-1])


def test_parquet_columns_of_lists_and_of_texts():
    import pyarrow as arrow
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pairs = arrow.FixedSizeListArray.from_arrays(arrow.array(range(20), arrow.int16()), 2)
    table = arrow.table(
        {"pair": pairs, "name": arrow.array(list("abcdefghij")), "flag": arrow.array([True, False] * 5)}
    )
    pq.write_table(table, file, row_group_size=3)
    dataset = opened(file.getvalue())
    assert dataset.fields == ("pair", "flag")
    pair, flag = dataset.__getitems__([9, 0]).arrays
    assert pair.tolist() == [[18, 19], [0, 1]] and flag.tolist() == [False, True]
    with pytest.raises(UsageError, match="fields: 'name', wanted some of flag, pair"):
        opened(file.getvalue(), fields=["name"])


def test_parquet_nulls_are_refused():
    import pyarrow as arrow
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(arrow.table({"a": arrow.array([1, None, 3])}), file)
    with pytest.raises(FormatError, match="column 'a': row group 0: 1 nulls, wanted none"):
        opened(file.getvalue())[0]


def test_parquet_without_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="needs pyarrow"):
        opened(b"PAR1" + bytes(100))


def test_several_files_by_name():
    values = world.arrays()
    pixels = np.arange(300 * 4, dtype=np.uint8).reshape(300, 4)
    both = SealedDataset(
        {
            "pixels": world.sealed(world.encode("idx", {"any": pixels})),
            "table": world.sealed(world.encode("npz", values)),
        }
    )
    assert both.fields == ("pixels", "table/x", "table/y")
    assert np.array_equal(both[17][0], pixels[17])
    one = SealedDataset({"pixels": world.sealed(world.encode("idx", {"any": pixels}))}, fields=["pixels"])
    assert np.array_equal(one[17], pixels[17])


def test_fields_are_chosen_in_the_order_given():
    values = world.arrays()
    content = world.encode("npz", values)
    assert opened(content, fields=["y", "x"])[5][0] == values["y"][5]
    assert opened(content, fields=["y"])[5] == values["y"][5]
    with pytest.raises(UsageError, match="fields: 'z', wanted some of x, y"):
        opened(content, fields=["z"])
    with pytest.raises(UsageError, match="the string 'xy', wanted a list"):
        opened(content, fields="xy")


def test_fields_of_different_lengths():
    content = world.encode("npz", {"x": np.zeros(3), "y": np.zeros(4), "scale": np.float32(2)})
    with pytest.raises(FormatError, match="field 'scale': a single value, wanted rows"):
        opened(content)
    with pytest.raises(FormatError, match="lengths x 3, y 4, wanted one length"):
        opened(content, fields=["x", "y"])
    assert len(opened(content, fields=["y"])) == 4


@pytest.mark.parametrize("kind", ["npz", "safetensors", "seal_arrays", "npz compressed"])
@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_nothing_to_read(kind, shape):
    dataset = opened(world.encode(kind, {"x": np.zeros(shape)}))
    assert len(dataset) == shape[0]
    assert dataset.__getitems__(range(shape[0])).arrays[0].shape == shape
    assert [len(batch) for batch in dataset.batches(3)] == ([3, 1] if shape[0] else [])


# Writing.


def test_seal_arrays_to_a_path(tmp_path):
    values = world.arrays()
    root = seal_arrays(tmp_path / "d", values, key=world.KEY, anchor=NO_FRESHNESS, block_size=4096)
    with SealedDataset(tmp_path / "d", key=world.KEY, anchor=PinnedAnchor(root)) as dataset:
        assert np.array_equal(dataset[9][0], values["x"][9])
    with pytest.raises(FileExistsError):
        seal_arrays(tmp_path / "d", values, key=world.KEY, anchor=NO_FRESHNESS)


def test_seal_arrays_writes_aligned_safetensors():
    from safetensors.numpy import load

    values = {
        "x": np.arange(77, dtype=">i2"),
        "y": np.arange(77 * 3).reshape(77, 3)[:, ::-1],
        "é": np.arange(77) % 7 < 3,
    }
    content = world.encode("seal_arrays", values)
    found = {name: value for name, value in load(content).items() if not name.startswith("_fill")}
    assert found.keys() == values.keys()
    assert all(np.array_equal(found[name], values[name]) for name in values)
    for value in values.values():
        at = content.index(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes())
        assert at % world.BLOCK == 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "arrays: none"),
        ({"x": [1], "y": [1, 2]}, "lengths x 1, y 2, wanted one length"),
        ({"x": 3}, "'x': a single value"),
        ({"_x": [1]}, "'_x', wanted one that does not begin with _"),
        ({"x": ["a"]}, "dtype <U1, wanted one of"),
    ],
)
def test_seal_arrays_refuses(arrays, message):
    with pytest.raises(UsageError, match=message):
        seal_arrays(io.BytesIO(), arrays)


def test_seal_arrays_never_writes_objects():
    with pytest.raises(FormatError, match="an object array"):
        seal_arrays(io.BytesIO(), {"x": np.array([{}])})


# Refusals.


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header.encode() + data


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}, {}]), allow_pickle=True)
    return file.getvalue()


HEADERS = {
    "nothing": (b"", "starts with nothing, wanted NPY"),
    "text": (b"hello, world: nothing", "starts with 68656c6c6f"),
    "gzip": (gzip.compress(b"x" * 100, mtime=0), "holds gzip"),
    "pickle": (pickle.dumps({"a": 1}), "holds a Python pickle"),
    "npy objects": (pickled(), "an object array"),
    "npy cut": (world.encode("npy", {"x": np.zeros(9)})[:-1], "71 bytes, wanted 72"),
    "npy long header": (b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31), "header of 2147483648 bytes"),
    "npy version": (npy("{}", version=b"\7\0") + bytes(9), "version 7.0"),
    "npy code": (npy("__import__('os').abort()"), "wanted descr"),
    "npy nested": (npy("(" * 9000), "wanted descr"),
    "npy fields": (npy("{'descr': '<f4', 'shape': (1,)}", bytes(4)), "wanted descr"),
    "npy structured": (
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", bytes(4)),
        "wanted numbers",
    ),
    "npy negative": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", bytes(4)), "wanted sizes"),
    "npy huge": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 99999999)}"), "0 bytes, wanted 39"),
    "npy columns": (world.encode("npy", {"x": np.asfortranarray(np.zeros((3, 4)))}), "Fortran order"),
    "idx cut": (world.encode("idx", {"x": np.zeros((9, 9), "f4")})[:-1], "ends at byte"),
    "idx long": (world.encode("idx", {"x": np.zeros((9, 9), "f4")}) + b"\0", "325 bytes, wanted 324"),
    "idx huge": (struct.pack(">4B3I", 0, 0, 14, 3, *[0xFFFFFFFF] * 3), "ends at byte"),
    "safetensors long header": (struct.pack("<Q", 1 << 39) + b"{}" + bytes(9), "header of 549755813888 bytes"),
    "safetensors json": (world.safetensors_with(b"{nonsense"), "not JSON"),
    "safetensors deep": (world.safetensors_with(b'{"a":' * 100_000), "not JSON"),
    "safetensors twice": (world.safetensors_with(b'{"a": {}, "a": {}}'), "given twice"),
    "safetensors entry": (world.safetensors_with({"a": 3}), "wanted dtype"),
    "safetensors dtype": (
        world.safetensors_with({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, b"1"),
        "dtype F8_E4M3",
    ),
    "safetensors size": (
        world.safetensors_with({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 1]}}, b"1"),
        "1 bytes, wanted 3",
    ),
    "safetensors outside": (
        world.safetensors_with({"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, b"1"),
        "ends at byte",
    ),
    "safetensors falling": (
        world.safetensors_with({"a": {"dtype": "U8", "shape": [1], "data_offsets": [2, 1]}}, b"12"),
        "rising data_offsets",
    ),
    "safetensors float": (
        world.safetensors_with({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"12"),
        "wanted sizes",
    ),
    "zip cut": (world.encode("npz", world.arrays())[:-30], "not an NPZ file"),
    "parquet footer": (b"PAR1" + bytes(8) + struct.pack("<I", 1 << 30) + b"PAR1", "Parquet footer of 1073741824"),
    "parquet noise": (b"PAR1" + bytes(50) + struct.pack("<I", 40) + b"PAR1", "not a Parquet file"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_refuses_headers_that_lie(name):
    content, message = HEADERS[name]
    with pytest.raises(FormatError, match=message) as caught:
        opened(content)
    assert caught.value.message.startswith("sealed file: ")


def zipped(name: str, content: bytes, **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def test_zip_members():
    good = world.encode("npy", {"x": np.arange(9)})
    assert opened(zipped("a.npy", good))[8] == 8
    with pytest.raises(FormatError, match=r"member 'a.txt', wanted NPY files"):
        opened(zipped("a.txt", good))
    with pytest.raises(FormatError, match="not an NPY file"):
        opened(zipped("a.npy", b"text", compression=zipfile.ZIP_DEFLATED))


def test_compressed_member_that_is_larger_than_the_cache():
    content = world.encode("npz compressed", {"x": np.zeros((1000, 1000)), "y": np.arange(1000)})
    with pytest.raises(FormatError, match="takes 8000000 bytes decompressed, wanted at most 1000000") as caught:
        opened(content, cache=1_000_000)
    assert "uncompressed" in caught.value.hint
    assert opened(content, cache=1_000_000, fields=["y"])[7] == 7


def test_row_group_that_is_larger_than_the_cache():
    content = world.encode("parquet", world.arrays())
    with pytest.raises(FormatError, match=r"part 0 takes .* its share of the cache"):
        opened(content, cache=1000)[0]


@pytest.mark.skipif("STRONGROOM_DATA" not in os.environ, reason="STRONGROOM_DATA names no directory of data sets")
def test_mnist_as_it_is_published(tmp_path):
    def content(name: str) -> bytes:
        return gzip.decompress((Path(os.environ["STRONGROOM_DATA"]) / "mnist" / f"{name}.gz").read_bytes())

    files = {"image": "train-images-idx3-ubyte", "label": "train-labels-idx1-ubyte"}
    for name, published in files.items():
        with open_sealed(tmp_path / name, "x", key=world.KEY, anchor=NO_FRESHNESS) as file:
            file.write(content(published))
    with SealedDataset({name: tmp_path / name for name in files}, key=world.KEY, anchor=NO_FRESHNESS) as digits:
        assert len(digits) == 60_000 and digits.shapes == ((28, 28), ())
        counts = np.zeros(10, int)
        for _, labels in digits.batches(1000):
            counts += np.bincount(labels, minlength=10)
        assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        image, label = digits[59_999]
        raw = content(files["image"])
        assert image.tobytes() == raw[-784:] and label == content(files["label"])[-1]
