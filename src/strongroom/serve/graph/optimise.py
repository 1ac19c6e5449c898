"""Optimised once, before it is cut: what ONNX Runtime would fuse across a cut is fused already.

The level is "extended". The one above it lays tensors out for the processor that it runs on, and a plan is made on
another machine than it runs on; each stage's own session does that again for its part.
"""

from __future__ import annotations

import os
from typing import Any

from strongroom.errors import ModelFormatError
from strongroom.serve.graph.model import MAX_MODEL, Model, put_in_form, tensor_bytes
from strongroom.serve.graph.shapes import session
from strongroom.serve.runtime import onnx

_EXTENDED = 2
# What folding may add: an optimiser that computes a weight once should not store it twice.
_GROWTH, _SLACK = 1.01, 1 << 16


def optimise(model: Model) -> Model:
    """The model after ONNX Runtime's optimiser, at the level "extended": the same answers within 1e-5.

    Weights do not grow: where computing constants ahead would make more of them, that is left out, and a note says so.
    The plain model is kept in memory alone; where a system has no files in memory (all but Linux), the model is left as
    it is, with a note.

    Raises:
        ModelFormatError: ONNX Runtime cannot load it.
    """
    if not hasattr(os, "memfd_create"):
        return _noted(model, "not optimised before it is cut: this system has no files in memory")
    before = _weight_bytes(model.proto)
    for without, note in ((), ()), (("ConstantFolding",), ("constants are not folded: weights would grow",)):
        proto = onnx().load_model_from_string(_optimised(model.proto.SerializeToString(), without))
        if _weight_bytes(proto) <= before * _GROWTH + _SLACK and _ends(proto) == _ends(model.proto):
            put_in_form(proto)
            return Model(proto, model.digest, (*model.notes, *note))
    return _noted(model, "not optimised before it is cut: weights would grow")


def _noted(model: Model, note: str) -> Model:
    return Model(model.proto, model.digest, (*model.notes, note))


def _optimised(model: bytes, without: tuple[str, ...]) -> bytes:
    """What ONNX Runtime writes of the model, into a file that has no name and is gone when it is closed."""
    file = os.memfd_create("model", os.MFD_CLOEXEC)
    try:
        session(model, optimised=_EXTENDED, path=f"/proc/self/fd/{file}", without=without)
        if (size := os.fstat(file).st_size) > MAX_MODEL:
            raise ModelFormatError(f"model: {size} bytes after optimising, the limit is {MAX_MODEL}")
        data = bytearray()
        while len(data) < size and (piece := os.pread(file, size - len(data), len(data))):
            data += piece
        return bytes(data)
    finally:
        os.close(file)


def _weight_bytes(proto: Any) -> int:
    return sum(tensor_bytes(each) for each in proto.graph.initializer)


def _ends(proto: Any) -> list[list[str]]:
    graph = proto.graph
    return [[each.name for each in ends] for ends in (graph.input, graph.output)]
