"""Values that are stored small and normalised when they are read: exactly as by hand, by every face."""

import io
import json
import pickle
import struct
import sys

import numpy as np
import pytest

from strongroom.data import Normalise, SealedDataset, collate, seal_arrays
from strongroom.errors import FormatError, MissingDependencyError, UsageError
from strongroom.sealed import NO_FRESHNESS
from tests.data import world

IMAGES = np.random.default_rng(0).integers(0, 256, (500, 3, 12, 12), np.uint8)
FLOATS = np.random.default_rng(1).standard_normal((500, 7)).astype(np.float32)
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
CHANNELS = (IMAGES.astype(np.float32) - np.float32(MEAN)[:, None, None]) / np.float32(STD)[:, None, None]
BYTES = IMAGES / np.float32(255)


def sealed(arrays, **how):
    return world.sealed(world_bytes(arrays, **how))


def world_bytes(arrays, **how) -> bytes:
    file = io.BytesIO()
    seal_arrays(file, arrays, block_size=world.BLOCK, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (Normalise(std=255), BYTES),
        (Normalise(MEAN, STD), CHANNELS),
        (Normalise(mean=np.float32(MEAN), std=list(STD)), CHANNELS),
        (Normalise(), IMAGES.astype(np.float32)),
        (None, IMAGES),
    ],
)
@pytest.mark.parametrize("cache", [0, 40 * world.BLOCK, 1 << 28])
def test_batches_are_those_of_normalising_by_hand(how, wanted, cache):
    arrays = {"image": IMAGES, "label": np.arange(500)}
    file = sealed(arrays, normalise={"image": how} if how else None)
    with SealedDataset(file, cache=cache) as dataset:
        assert dataset.dtypes == (wanted.dtype, np.int64)
        assert dataset.shapes == ((3, 12, 12), ())
        for images, labels in dataset.batches(64, seed=3):
            assert images.dtype == wanted.dtype
            assert np.array_equal(images, wanted[labels])
        assert np.array_equal(dataset[7][0], wanted[7])
        assert np.array_equal(next(iter(dataset))[0], wanted[0])


def test_what_is_cached_is_what_is_stored():
    with SealedDataset(sealed({"image": IMAGES}, normalise={"image": Normalise(std=255)})) as dataset:
        dataset.preload()
        assert IMAGES.nbytes <= dataset.cached < IMAGES.nbytes + 2 * world.BLOCK


def test_pytorch_gets_what_torch_makes_of_the_bytes():
    torch = pytest.importorskip("torch")
    how = {"image": Normalise(std=255)}
    with SealedDataset(sealed({"image": IMAGES, "label": np.arange(500)}, normalise=how)) as dataset:
        loader = torch.utils.data.DataLoader(dataset, 64, shuffle=True, collate_fn=collate)
        for images, labels in loader:
            assert torch.equal(images, torch.from_numpy(IMAGES)[labels] / 255)


@pytest.mark.filterwarnings("ignore")
def test_tensorflow_gets_floats():
    tf = pytest.importorskip("tensorflow")
    how = {"image": Normalise(std=255)}
    with SealedDataset(sealed({"image": IMAGES, "label": np.arange(500)}, normalise=how)) as dataset:
        made = dataset.to_tf(64, seed=1)
        assert made.element_spec[0].dtype == tf.float32
        for images, labels in made:
            assert np.array_equal(images.numpy(), BYTES[labels.numpy()])


def test_batches_that_are_kept_never_change():
    with SealedDataset(sealed({"image": IMAGES}, normalise={"image": Normalise(std=255)})) as dataset:
        kept = list(dataset.batches(100, shuffle=False))
    assert np.array_equal(np.concatenate(kept), BYTES)


def test_a_reader_may_ask_for_something_else():
    file = world_bytes({"image": IMAGES}, normalise={"image": Normalise(std=255)})
    with SealedDataset(world.sealed(file), normalise={"image": None}) as dataset:
        assert np.array_equal(next(dataset.batches(500, shuffle=False)), IMAGES)
    with SealedDataset(world.sealed(file), normalise={"image": Normalise(MEAN, STD)}) as dataset:
        assert np.array_equal(next(dataset.batches(500, shuffle=False)), CHANNELS)
    idx = world.sealed(world.encode("idx", {"data": IMAGES}))
    with SealedDataset({"image": idx}, normalise={"image": Normalise(std=255)}) as dataset:
        assert np.array_equal(next(dataset.batches(500, shuffle=False)), BYTES)


def test_a_spawned_worker_normalises_as_its_parent_does(tmp_path, monkeypatch):
    path = world.sealed_at(tmp_path / "file", world_bytes({"image": IMAGES}))
    how = {"image": Normalise(MEAN, STD)}
    with SealedDataset(path, key=world.KEY, anchor=NO_FRESHNESS, normalise=how, mapped=True) as dataset:
        monkeypatch.setattr("multiprocessing.context.get_spawning_popen", lambda: True)
        with pickle.loads(pickle.dumps(dataset)) as worker:  # noqa: S301  # what spawning does
            assert np.array_equal(worker[3], CHANNELS[3])
            assert "MmapStorage" in repr(worker._sources[""].file._storage)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_mapped_file_gives_the_same(tmp_path, mapped):
    arrays = {"image": IMAGES, "label": np.arange(500)}
    seal_arrays(
        tmp_path / "file", arrays, key=world.KEY, anchor=NO_FRESHNESS, normalise={"image": Normalise(MEAN, STD)}
    )
    with SealedDataset(tmp_path / "file", key=world.KEY, anchor=NO_FRESHNESS, mapped=mapped, cache=0) as dataset:
        for images, labels in dataset.batches(33):
            assert np.array_equal(images, CHANNELS[labels])


class TestBfloat16:
    def test_the_nearest_is_stored_in_half_the_space(self):
        tenfold = np.concatenate([FLOATS * np.float32(10.0**power) for power in range(-38, 38, 2)], axis=1)
        file = world_bytes({"x": tenfold}, bfloat16=["x"])
        assert len(file) < tenfold.nbytes // 2 + 3 * world.BLOCK
        with SealedDataset(world.sealed(file)) as dataset:
            found = next(dataset.batches(500, shuffle=False))
        assert found.dtype == np.float32
        assert not (found.view(np.uint32) & 0xFFFF).any()
        apart = np.abs(found.astype(np.float64) - tenfold.astype(np.float64))
        # No neighbour in bfloat16 is nearer.
        for step in (-(1 << 16), 1 << 16):
            other = (found.view(np.int32) + step).view(np.float32).astype(np.float64)
            assert not (np.abs(other - tenfold) < apart).any()

    def test_halves_go_to_even_and_what_is_no_number_stays_none(self):
        bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x80000000], np.uint32)
        nans = np.array([0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF], np.uint32)
        values = np.concatenate([bits, nans]).view(np.float32)
        with SealedDataset(sealed({"x": values}, bfloat16=["x"])) as dataset:
            found = next(dataset.batches(10, shuffle=False))
        assert (found[:7].view(np.uint32) >> 16).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80, 0xFF80, 0x8000]
        assert np.isnan(found[7:]).all()

    def test_normalised_from_there(self):
        how = {"x": Normalise(0.5, 3.0)}
        with SealedDataset(sealed({"x": FLOATS}, bfloat16=["x"])) as dataset:
            narrow = next(dataset.batches(500, shuffle=False)).copy()
        with SealedDataset(sealed({"x": FLOATS.astype(np.float64)}, bfloat16=["x"], normalise=how)) as dataset:
            found = next(dataset.batches(500, shuffle=False))
        assert np.array_equal(found, (narrow - np.float32(0.5)) / np.float32(3.0))

    def test_arrays_of_that_type(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        values = FLOATS.astype(ml_dtypes.bfloat16)
        with SealedDataset(sealed({"x": values})) as dataset:
            assert np.array_equal(next(dataset.batches(500, shuffle=False)), values.astype(np.float32))

    @pytest.mark.parametrize("narrowed", [["x"], []])
    @pytest.mark.parametrize("how", [None, {"x": Normalise(0.5, 3.0)}])
    def test_batches_of_that_type(self, narrowed, how):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        torch = pytest.importorskip("torch")
        content = world_bytes({"x": FLOATS, "y": np.arange(500)}, bfloat16=narrowed, normalise=how)
        with SealedDataset(world.sealed(content)) as dataset:
            wanted = next(dataset.batches(500, shuffle=False))[0].astype(ml_dtypes.bfloat16)
        with SealedDataset(world.sealed(content), bfloat16=["x"]) as dataset:
            assert dataset.dtypes == (np.dtype(ml_dtypes.bfloat16), np.int64)
            assert np.array_equal(next(dataset.batches(500, shuffle=False))[0], wanted)
            found, labels = next(iter(torch.utils.data.DataLoader(dataset, 500, collate_fn=collate)))
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, torch.from_numpy(wanted.astype(np.float32)).bfloat16())
        assert torch.equal(labels, torch.arange(500))

    def test_that_type_needs_ml_dtypes(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        with pytest.raises(MissingDependencyError, match="NumPy has no such type"):
            SealedDataset(sealed({"x": FLOATS}), bfloat16=["x"])

    def test_other_programs_read_it(self):
        torch = pytest.importorskip("torch")
        load = pytest.importorskip("safetensors.torch").load
        found = load(world_bytes({"x": FLOATS, "y": IMAGES}, bfloat16=["x"], normalise={"y": Normalise(std=255)}))
        assert torch.equal(found["x"], torch.from_numpy(FLOATS).bfloat16())
        assert torch.equal(found["y"], torch.from_numpy(IMAGES))

    @pytest.mark.parametrize(
        ("names", "message"),
        [("x", "the string 'x'"), (["z"], "'z', wanted some of x, y"), (["y"], "bfloat16: of uint8, wanted floats")],
    )
    def test_refuses(self, names, message):
        with pytest.raises(UsageError, match=message):
            world_bytes({"x": FLOATS, "y": IMAGES}, bfloat16=names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("x", "the string 'x'"),
        (["z"], "'z', wanted some of x"),
        (["x"], "field 'x' of int64, wanted one that is given"),
    ],
)
def test_fields_that_cannot_be_bfloat16(names, message):
    with pytest.raises(UsageError, match=message):
        SealedDataset(sealed({"x": np.arange(10)}), bfloat16=names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": 0}, "std 0, wanted finite numbers above 0"),
        ({"std": (1, -1)}, "above 0"),
        ({"std": 1e-60}, "above 0"),
        ({"mean": float("nan")}, "mean nan, wanted finite numbers"),
        ({"mean": 1e39}, "wanted finite numbers"),
        ({"mean": "0"}, "'0', wanted numbers"),
        ({"mean": [[1], [1, 2]]}, "wanted numbers"),
        ({"mean": 10**400}, "wanted numbers"),
        ({"mean": ()}, "of shape"),
        ({"mean": [[1.0]]}, "of shape"),
        ({"mean": None}, "wanted numbers"),
    ],
)
def test_numbers_that_make_no_sense(arguments, message):
    with pytest.raises(UsageError, match=message):
        Normalise(**arguments)


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("z", Normalise(), "'z', wanted some of image, label"),
        ("label", Normalise(), "of int64, wanted one of"),
        ("image", Normalise(mean=(1, 2)), "mean of 2 channels, wanted one number, or one for each place"),
    ],
)
def test_arrays_that_cannot_be_normalised(name, how, message):
    arrays = {"image": IMAGES, "label": np.arange(500)}
    with pytest.raises(UsageError, match=message):
        world_bytes(arrays, normalise={name: how})
    with pytest.raises(UsageError, match=message):
        SealedDataset(sealed(arrays), normalise={name: how})


def test_a_file_of_before_reads_as_it_did():
    """Without the member the header is, byte for byte, what it was."""
    content = world_bytes({"image": IMAGES, "label": np.arange(500)})
    (size,) = struct.unpack_from("<Q", content)
    assert json.loads(content[8 : 8 + size]).keys() == {"image", "_fill1", "label"}
    with SealedDataset(world.sealed(content)) as dataset:
        assert dataset.dtypes == (np.uint8, np.int64)


def test_the_error_names_the_file_and_the_field():
    header = {"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}
    header["__metadata__"] = {"strongroom.normalise": '{"x": {"mean": 0, "std": 0}}'}
    with pytest.raises(FormatError, match="sealed file: array 'x': normalise: std 0"):
        SealedDataset(world.sealed(world.safetensors_with(header, b"ab")))
