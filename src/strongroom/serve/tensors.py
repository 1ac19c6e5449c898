"""Tensors of the Open Inference Protocol V2 for both ends: JSON, and the binary tensor extension.

A body is one JSON object, followed by the raw bytes of those tensors whose `parameters.binary_data_size` says so, in
the order in which the object lists them; the header `Inference-Header-Content-Length` then gives the object's length.

Rules for what comes from a peer:

- Sizes are checked against each other and against caps before anything of that size is allocated.
- The bytes add up: a tensor has exactly the bytes of its shape and datatype, and nothing follows the last one.
- A field that is not known is refused, not ignored; a JSON key occurs once; numbers are finite and in range.
- A binary tensor is a view of the body, not a copy of it, unless it lies there unaligned.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from strongroom.errors import FormatError, ServeError
from strongroom.serve.wire import MAX_JSON, a_bool, a_list, a_name, an_object, kind_of, read_json, show

Array: TypeAlias = npt.NDArray[Any]
Body: TypeAlias = bytes | bytearray

HEADER = "inference-header-content-length"

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}

MAX_RANK = 32
MAX_ELEMENTS = 1 << 40
MAX_TEXT = 1 << 20
"""Elements of a tensor as JSON: each takes some 50 bytes while it is written, and readers take `MAX_JSON` at most."""
# JSON before binary tensors is padded to this, so that they can be used where they lie.
_ALIGNMENT = 64
# Messages up to this size are one piece: sending one costs more than copying it. Longer ones are not copied.
_JOINED = 1 << 16


@dataclass(frozen=True)
class TensorInfo:
    """What a model says of one of its inputs or outputs; -1 in `shape` stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_wire(self) -> dict[str, object]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    @classmethod
    def from_wire(cls, wire: object) -> TensorInfo:
        """Raises FormatError unless `wire` is what `to_wire` gives."""
        entry = an_object(wire, "tensor metadata", required=("name", "datatype", "shape"))
        name = a_name(entry["name"], "tensor name")
        _dtype(entry["datatype"], name)
        return cls(name, str(entry["datatype"]), _shape(entry["shape"], name, lowest=-1))

    def __str__(self) -> str:
        return f"{self.datatype}{list(self.shape)}"


@dataclass(frozen=True)
class InferRequest:
    """One request. `outputs` maps the names wanted to whether each is wanted binary; empty means all, as `binary`."""

    inputs: Mapping[str, Array] = field(repr=False)
    outputs: Mapping[str, bool] = field(default_factory=dict)
    binary: bool = False
    id: str | None = None


@dataclass(frozen=True)
class InferResponse:
    """One answer."""

    outputs: Mapping[str, Array] = field(repr=False)
    model_name: str
    model_version: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """A body in pieces that are sent one after the other; `header_length` is None when it is JSON alone."""

    pieces: Sequence[bytes | memoryview] = field(repr=False)
    header_length: int | None

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that go with it, but for its length."""
        if self.header_length is None:
            return {"content-type": "application/json"}
        return {"content-type": "application/octet-stream", HEADER: str(self.header_length)}


def datatype_of(array: Array, name: str) -> str:
    """The protocol's name for an array's type.

    Raises:
        ServeError: it has none.
    """
    try:
        return _NAMES[array.dtype.newbyteorder("<")]
    except KeyError:
        raise ServeError(f"tensor {name}: got dtype {array.dtype}, wanted one of {', '.join(DATATYPES)}") from None


def check_fits(array: Array, info: TensorInfo) -> None:
    """Pass an array that an input takes.

    Raises:
        ServeError: its datatype or shape is another.
    """
    got = datatype_of(array, info.name)
    if got != info.datatype:
        raise ServeError(f"input {info.name!r}: got datatype {got}, wanted {info.datatype}")
    if len(array.shape) != len(info.shape) or any(
        size not in (-1, given) for size, given in zip(info.shape, array.shape, strict=True)
    ):
        raise ServeError(
            f"input {info.name!r}: got shape {list(array.shape)}, wanted {list(info.shape)}",
            hint="-1 stands for any size" if -1 in info.shape else None,
        )


def header_length(value: str | None) -> int | None:
    """The value of the header `Inference-Header-Content-Length`.

    Raises:
        FormatError: it is not a decimal number.
    """
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 12):
        raise FormatError(f"{HEADER}: got {value[:20]!r}, wanted a decimal number")
    return int(value)


def write_request(request: InferRequest, *, binary: bool = True) -> Message:
    """A request's body; `binary` says how its inputs travel, `request.binary` and `.outputs` how the answer shall.

    Its pieces may be views of the inputs, which must not change until they are sent.

    Raises:
        ServeError: an input has a type that the protocol lacks, or holds what JSON cannot carry.
    """
    entries, pieces = _write_tensors(request.inputs, dict.fromkeys(request.inputs, binary), copy=False)
    head: dict[str, object] = {"inputs": entries}
    if request.id is not None:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [
            {"name": name, "parameters": {"binary_data": wanted}} for name, wanted in request.outputs.items()
        ]
    elif request.binary:
        head["parameters"] = {"binary_data_output": True}
    return _message(head, pieces)


def parse_request(body: Body, header: int | None = None) -> InferRequest:
    """Parse a request's body; `header` is the JSON's length when binary tensors follow.

    Raises:
        FormatError: it is not a V2 inference request, exceeds a cap, or asks for what is not offered.
    """
    head, offset = _head(body, header)
    head = an_object(head, "request", required=("inputs",), optional=("id", "parameters", "outputs"))
    parameters = an_object(head.get("parameters", {}), "request parameters", optional=("binary_data_output",))
    binary = a_bool(parameters.get("binary_data_output", False), "binary_data_output")
    outputs: dict[str, bool] = {}
    for item in a_list(head.get("outputs", []), "outputs"):
        entry = an_object(item, "output", required=("name",), optional=("parameters",))
        name = a_name(entry["name"], "output name")
        if name in outputs:
            raise FormatError(f"output {name!r}: is asked for twice")
        wish = an_object(entry.get("parameters", {}), f"output {name!r} parameters", optional=("binary_data",))
        outputs[name] = a_bool(wish.get("binary_data", binary), f"output {name!r} binary_data")
    return InferRequest(_read_tensors(head["inputs"], "input", body, offset), outputs, binary, _id(head))


def write_response(response: InferResponse, binary: Mapping[str, bool]) -> Message:
    """An answer's body, a copy; `binary` says of each output whether it travels as raw bytes.

    Raises:
        ServeError: an output holds what JSON cannot carry, or too much for it.
    """
    entries, pieces = _write_tensors(response.outputs, binary, copy=True)
    head: dict[str, object] = {"model_name": response.model_name}
    if response.model_version is not None:
        head["model_version"] = response.model_version
    if response.id is not None:
        head["id"] = response.id
    return _message(head | {"outputs": entries}, pieces)


def parse_response(body: Body, header: int | None = None) -> InferResponse:
    """Parse an answer's body.

    Raises:
        FormatError: it is not a V2 inference response, or exceeds a cap.
    """
    head, offset = _head(body, header)
    head = an_object(
        head, "response", required=("model_name", "outputs"), optional=("model_version", "id", "parameters")
    )
    version = head.get("model_version")
    return InferResponse(
        _read_tensors(head["outputs"], "output", body, offset),
        a_name(head["model_name"], "model name"),
        None if version is None else a_name(version, "model version"),
        _id(head),
    )


def _head(body: Body, header: int | None) -> tuple[object, int | None]:
    """The JSON part, and where the binary part begins if there is one."""
    if header is None:
        return read_json(body, "body"), None
    if header > len(body):
        raise FormatError(f"{HEADER}: got {header}, wanted at most the body's {len(body)} bytes")
    if header > MAX_JSON:
        raise FormatError(f"{HEADER}: got {header}, wanted at most {MAX_JSON}")
    return read_json(body[:header], "body"), header


def _message(head: Mapping[str, object], pieces: Sequence[bytes | memoryview]) -> Message:
    raw = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    if not any("binary_data_size" in entry.get("parameters", ()) for entry in _entries(head)):
        return Message([raw], None)
    raw += b" " * (-len(raw) % _ALIGNMENT)
    if len(raw) + sum(map(len, pieces)) <= _JOINED:
        return Message([b"".join([raw, *pieces])], len(raw))
    return Message([raw, *pieces], len(raw))


def _entries(head: Mapping[str, object]) -> Iterable[Mapping[str, Any]]:
    entries = head.get("inputs", head.get("outputs"))
    return entries if isinstance(entries, list) else ()


def _write_tensors(
    tensors: Mapping[str, Array], binary: Mapping[str, bool], *, copy: bool
) -> tuple[list[dict[str, object]], list[bytes | memoryview]]:
    entries: list[dict[str, object]] = []
    pieces: list[bytes | memoryview] = []
    for name, array in tensors.items():
        datatype = datatype_of(array, name)
        entry: dict[str, object] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if binary.get(name, False):
            flat = np.ascontiguousarray(array, DATATYPES[datatype]).reshape(-1).view(np.uint8)
            raw = flat.tobytes() if copy else flat.data
            entry["parameters"] = {"binary_data_size": len(raw)}
            pieces.append(raw)
        else:
            if array.size > MAX_TEXT:
                raise ServeError(
                    f"tensor {name}: {array.size} elements, wanted at most {MAX_TEXT} in JSON",
                    hint='send binary tensors, and ask for them with parameters {"binary_data": true}',
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ServeError(
                    f"tensor {name}: holds NaN or infinity, which JSON cannot carry",
                    hint='ask for it with parameters {"binary_data": true}',
                )
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    return entries, pieces


def _read_tensors(value: object, kind: str, body: Body, offset: int | None) -> dict[str, Array]:
    """The tensors that `value` lists; those that are binary lie in `body` from `offset` on, and fill it."""
    entries = a_list(value, f"{kind}s")
    if not entries:
        raise FormatError(f"{kind}s: got none, wanted at least one")
    found: dict[str, Array] = {}
    for item in entries:
        entry = an_object(item, kind, required=("name", "shape", "datatype"), optional=("data", "parameters"))
        name = a_name(entry["name"], f"{kind} name")
        if name in found:
            raise FormatError(f"{kind} {name!r}: is given twice")
        what = f"{kind} {name!r}"
        dtype, shape = _dtype(entry["datatype"], what), _shape(entry["shape"], what)
        parameters = an_object(entry.get("parameters", {}), f"{what} parameters", optional=("binary_data_size",))
        if "binary_data_size" not in parameters:
            if "data" not in entry:
                raise FormatError(f"{what}: got neither data nor binary_data_size, wanted one of them")
            found[name] = _from_json(entry["data"], dtype, shape, what)
            continue
        if "data" in entry or offset is None:
            with_it = "data" if "data" in entry else f"no {HEADER} header"
            raise FormatError(f"{what}: got binary_data_size with {with_it}")
        size, wanted = parameters["binary_data_size"], _count(shape, what) * dtype.itemsize
        if type(size) is not int or size != wanted:
            raise FormatError(f"{what}: got binary_data_size {show(size)}, wanted {wanted} for its shape and datatype")
        if size > len(body) - offset:
            raise FormatError(f"{what}: {len(body) - offset} bytes left in the body, wanted {size}")
        found[name] = _from_bytes(body, offset, dtype, shape, what)
        offset += size
    if offset is not None and offset != len(body):
        raise FormatError(f"body: {len(body) - offset} bytes after the last tensor, wanted none")
    return found


def _from_bytes(body: Body, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> Array:
    count = _count(shape, what)
    if not count:
        return np.zeros(shape, dtype)
    if dtype.kind == "b" and np.frombuffer(body, np.uint8, count, offset).max() > 1:
        raise FormatError(f"{what}: a BOOL is a byte of 0 or 1")
    flat = np.frombuffer(body, dtype, count, offset)
    return (flat if flat.flags.aligned else flat.copy()).reshape(shape)


def _from_json(data: object, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> Array:
    """`data` is row-major: flat, or nested as `shape` is."""
    flat, count = a_list(data, f"{what} data", cap=MAX_ELEMENTS), _count(shape, what)
    if list in set(map(type, flat)):
        for size, axis in zip(shape[1:], itertools.count(1), strict=False):
            if len(flat) != _count(shape[:axis], what) or any(type(r) is not list or len(r) != size for r in flat):
                raise FormatError(f"{what} data: is nested otherwise than its shape {list(shape)}")
            flat = list(itertools.chain.from_iterable(flat))
    if len(flat) != count:
        raise FormatError(f"{what} data: got {len(flat)} elements, wanted {count} for shape {list(shape)}")
    wanted: set[type] = {bool} if dtype.kind == "b" else {int} if dtype.kind in "iu" else {int, float}
    if set(map(type, flat)) - wanted:
        stray = next(item for item in flat if type(item) not in wanted)
        raise FormatError(f"{what} data: got {kind_of(stray)}, wanted {_NAMES[dtype]} elements only")
    if dtype.kind in "iu" and flat:
        limits = np.iinfo(dtype)
        if min(flat) < limits.min or max(flat) > limits.max:
            raise FormatError(f"{what} data: a number is out of {_NAMES[dtype]}'s range")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype)
    except OverflowError:  # an integer of hundreds of digits as FP64
        array = np.array([np.inf])
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise FormatError(f"{what} data: a number is out of {_NAMES[dtype]}'s range")
    return array.reshape(shape)


def _dtype(value: object, what: str) -> np.dtype[Any]:
    dtype = DATATYPES.get(value) if isinstance(value, str) else None
    if dtype is None:
        raise FormatError(
            f"{what}: got datatype {show(value)}, wanted one of {', '.join(DATATYPES)}",
            hint="text tensors are not offered: send UINT8 bytes or token ids" if value == "BYTES" else None,
        )
    return dtype


def _shape(value: object, what: str, *, lowest: int = 0) -> tuple[int, ...]:
    dimensions = a_list(value, f"{what} shape", cap=MAX_RANK)
    for dimension in dimensions:
        if type(dimension) is not int or not lowest <= dimension <= MAX_ELEMENTS:
            raise FormatError(
                f"{what} shape: got a dimension {show(dimension)}, wanted an integer of {lowest} to {MAX_ELEMENTS}"
            )
    return tuple(dimensions)


def _count(shape: Sequence[int], what: str) -> int:
    """The number of elements. Zeros count as ones against the cap: NumPy cannot hold [0, 2^62] either."""
    bound, count = 1, 1
    for dimension in shape:
        bound, count = bound * max(dimension, 1), count * dimension
    if bound > MAX_ELEMENTS:
        raise FormatError(f"{what} shape: got more than {MAX_ELEMENTS} elements")
    return count


def _id(head: Mapping[str, Any]) -> str | None:
    return a_name(head["id"], "id") if head.get("id") else None
