"""The plan as bytes: one spelling, and nothing that is no plan."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.binding import canonical
from strongroom.errors import FormatError
from strongroom.serve.plan import Enclaves, Paging, Plan, StagePlan
from strongroom.serve.plan.document import Change, Cut

PLAN = Plan(
    model="ab" * 32,
    chain="cd" * 32,
    units=5,
    change=Change("static", 250, "ef" * 32),
    splits=(Cut("fc", 3), Cut("fc2", 2, True)),
    batch=4,
    dims={"sequence": 128},
    objective="throughput",
    enclaves=(Enclaves(94 << 20, 4), Enclaves(1 << 30, None, 150, "large")),
    paging=Paging(33_000, 250, "swap"),
    stages=(StagePlan(0, 2, 0, 3, 10, 20, 30, 40), StagePlan(2, 5, 1, 1, 11, 21, 31, 41)),
    takes=100,
    shared=None,
    latency_ns=61,
    period_ns=31,
)


def test_a_plan_comes_back_from_its_bytes():
    assert Plan.parse(PLAN.to_bytes()) == PLAN
    assert Plan.parse(PLAN.to_bytes()).digest == PLAN.digest
    assert PLAN.answers_per_second == pytest.approx(4e9 / 31)


def changed(*path: Any, to: object) -> bytes:
    wire = copy.deepcopy(PLAN.to_wire())
    at: Any = wire
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = to
    return canonical(wire)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("version",), 2, "version 2"),
        (("version",), True, "version True"),
        (("model",), "AB" * 32, "64 hexadecimal digits"),
        (("units",), 6, "do not cover units 0 to 5"),
        (("stages", 1, "first"), 3, "do not cover"),
        (("stages", 0, "last"), 0, "last: got 0"),
        (("stages", 0, "replicas"), 5, "take 5"),
        (("stages", 0, "enclave"), 2, "enclave: got 2"),
        (("stages",), [], "do not cover"),
        (("stages", 0, "memory"), -1, "memory: got -1"),
        (("enclaves", 0, "memory"), 0, "memory: got 0"),
        (("enclaves",), [], "enclave: got 0"),
        (("splits", 1, "output"), "fc", "one operator twice"),
        (("splits", 0, "pieces"), 1, "pieces: got 1"),
        (("dims", "sequence"), 0, "dims: got 0"),
        (("objective",), "cost", "objective"),
        (("change", "quantized"), "int4", "quantized"),
        (("paging", "page_ns"), 0, "page_ns: got 0"),
        (("latency_ns",), "61", "latency_ns"),
        (("extra",), 1, "unknown field 'extra'"),
    ],
)
def test_what_is_no_plan_is_refused(path: tuple[Any, ...], value: object, words: str):
    with pytest.raises(FormatError, match=words):
        Plan.parse(changed(*path, to=value))


def test_another_spelling_is_refused():
    with pytest.raises(FormatError, match="canonical"):
        Plan.parse(json.dumps(PLAN.to_wire()).encode())
    with pytest.raises(FormatError):
        Plan.parse(PLAN.to_bytes() + b"\n")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_bytes_raise_anything_else(data: st.DataObject):
    raw = bytearray(PLAN.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        assert Plan.parse(bytes(raw)).to_bytes() == bytes(raw)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(PLAN.to_wire())), JUNK)
def test_no_value_of_a_field_raises_anything_else(field: str, junk: object):
    with contextlib.suppress(FormatError):
        Plan.parse(changed(field, to=junk))
