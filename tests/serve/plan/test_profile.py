"""What a model takes, tried on this machine and remembered."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest

from strongroom.errors import FormatError, ServeError, UsageError
from strongroom.serve.graph import load, units
from strongroom.serve.plan import Enclaves, Paging, Transfer, Wanted, compare, make, prepare, remembered, split_as
from strongroom.serve.plan.cache import Cache
from strongroom.serve.plan.prober import Taken
from strongroom.serve.plan.profile import batch_sizes, profile
from tests.serve.plan.world import network
from tests.serve.world import ENDLESS, turning

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is told on Linux alone")

WIDTH = 256
LAYER = 4 * WIDTH * (WIDTH + 1)
FREE = Transfer(1000, 10)


def test_a_model_is_measured_once_and_planned(tmp_path: Path):
    model = load(network(WIDTH, 4).SerializeToString())
    prepared = prepare(model, memory=1 << 30)
    cache, said = Cache(tmp_path / "cache"), []
    first = remembered(prepared.chain, cache, threads=1, say=said.append)
    assert said and first.whole.nanoseconds > 0
    assert first.costs.frontiers[0] == 4 * WIDTH and sum(first.costs.weights) == 4 * LAYER
    whole = int(first.costs.memory()[0, -1])
    assert 4 * LAYER <= whole < 4 * LAYER + (16 << 20)

    said.clear()
    assert remembered(prepared.chain, cache, threads=1, say=said.append) == first
    assert not said
    [file] = (tmp_path / "cache").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600

    plan = make(prepared, first, Wanted((Enclaves(whole - LAYER // 2),), FREE), None)
    assert len(plan.stages) == 2
    assert sum(each.weights for each in plan.stages) == 4 * LAYER
    more = Taken(whole + 5000, 0, 0, 0, 0)
    corrected = first.corrected([(0, len(prepared.chain))], [more]).costs.memory()
    assert corrected[0, -1] == more.resident + 8 * WIDTH
    found = compare(prepared, first, Wanted((Enclaves(1 << 14, 1),), FREE), Paging(1000, 100, "test"))
    assert isinstance(found["never paging"], ServeError)
    assert not isinstance(found["one stage"], ServeError)


def test_a_file_that_others_could_have_written_is_not_believed(tmp_path: Path):
    cache = Cache(tmp_path)
    cache.put({"kind": "test"}, {"value": 1})
    [file] = tmp_path.iterdir()
    assert cache.get({"kind": "test"}) == {"value": 1}
    assert cache.get({"kind": "other"}) is None
    file.chmod(0o644)
    with pytest.raises(FormatError, match="this user's alone"):
        cache.get({"kind": "test"})
    file.chmod(0o600)
    file.write_bytes(file.read_bytes().replace(b"test", b"text"))
    with pytest.raises(FormatError, match="something else"):
        cache.get({"kind": "test"})
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(FormatError):
        cache.get({"kind": "test"})


def test_what_is_too_large_for_an_enclave_is_cut_in_pieces():
    model, layer = load(network(1024, 2).SerializeToString()), 4 << 20
    whole = prepare(model, memory=8 * layer)
    assert not whole.splits
    cut = prepare(model, memory=layer)
    assert [each.pieces for each in cut.splits] == [4, 4]
    assert len(cut.chain) > len(whole.chain)
    assert max(unit.weight_bytes for unit in cut.chain) < layer // 2
    assert len(units(split_as(whole.chain.model, cut.splits))) == len(cut.chain)


def test_a_batch_is_the_first_dimension_that_a_model_leaves_open():
    chain = units(load(network(8, 1).SerializeToString()))
    assert batch_sizes(chain, 4, {}) == {"N": 4}
    assert batch_sizes(chain, 4, {"N": 2}) == {"N": 2}
    with pytest.raises(UsageError, match="'M': unknown, wanted one of N"):
        batch_sizes(chain, 1, {"M": 2})
    fixed = units(load(network(8, 1, batch=1).SerializeToString()))
    with pytest.raises(UsageError, match="fixes its first dimension"):
        batch_sizes(fixed, 4, {})


def endless() -> bytes:
    """A model whose Loop turns for ever, and gives a tensor of a size that only a run tells."""
    proto = onnx.load_model_from_string(turning())
    del proto.graph.input[1]
    proto.graph.initializer.append(onnx.helper.make_tensor("turns", onnx.TensorProto.INT64, [], [ENDLESS]))
    proto.graph.node.append(onnx.helper.make_node("NonZero", ["y"], ["found"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("found", onnx.TensorProto.INT64, [1, None]))
    return bytes(proto.SerializeToString())


def test_a_loop_without_an_end_ends_the_profile(monkeypatch):
    """And its sizes are not waited for."""
    monkeypatch.setattr("strongroom.serve.plan.prober.MOST_SECONDS", 0.3)
    monkeypatch.setattr("strongroom.serve.graph.shapes._MOST_SECONDS", 0.1)
    prepared = prepare(load(endless()), memory=1 << 30)
    with pytest.raises(ServeError, match=r"units 0 to \d did not run a few times within 0\.3 s") as late:
        profile(prepared.chain, threads=1)
    assert late.value.hint and "Loop" in late.value.hint
