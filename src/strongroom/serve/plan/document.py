"""The plan as a document: canonical JSON, whose digest claims carry (docs/spec/plan.md).

- Whole numbers only: bytes, nanoseconds, percent. Times are predictions and decide nothing; the cuts do.
- `Plan.parse` takes bytes from anywhere: a plan that it returns covers all units, once each and in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.crypto import digest
from strongroom.errors import FormatError, UsageError
from strongroom.serve.plan.costs import MAX_BYTES, MAX_UNITS, Enclaves
from strongroom.serve.plan.paging import Paging
from strongroom.serve.wire import a_list, a_name, an_object, show

FORMAT: Final = "strongroom-plan"
VERSION: Final = 1
MAX_PLAN: Final = 4 << 20
MAX_NAME: Final = 1024
_MAX_NUMBER: Final = 2**53 - 1
_MAX_SPLITS: Final = 1024
_MAX_PIECES: Final = 4096
_MAX_DIMS: Final = 64
_MAX_KINDS: Final = 16
_HEX64 = re.compile(r"[0-9a-f]{64}")
OBJECTIVES: Final = ("latency", "throughput")


@dataclass(frozen=True)
class Cut:
    """An operator in pieces: the name of what it makes, how many, and whether by rows of its weight."""

    output: str
    pieces: int
    rows: bool = False


@dataclass(frozen=True)
class Change:
    """What was done to a model's weights before it was cut.

    Attributes:
        quantized: ``dynamic`` or ``static``, to 8 bits; or empty.
        pruned: thousandths of the weights of large operators that are zero; 0 for none.
        source: SHA-256 of the model that it was done to, in hexadecimal digits.
    """

    quantized: str
    pruned: int
    source: str


@dataclass(frozen=True)
class StagePlan:
    """A stage of a plan.

    Attributes:
        first, last: its units: `first` to `last - 1`.
        enclave: the kind of enclave that it is for, by its place in the plan's list.
        replicas: in how many.
        weights: bytes of its weights.
        memory: bytes that it is predicted to take.
        nanoseconds: that it is predicted to compute, paging included.
        sends: bytes that it hands on.
    """

    first: int
    last: int
    enclave: int
    replicas: int
    weights: int
    memory: int
    nanoseconds: int
    sends: int


@dataclass(frozen=True)
class Plan:
    """How a model is cut and placed. Immutable; `digest` names it.

    Attributes:
        model: SHA-256 of the model that is cut, in hexadecimal digits.
        chain: SHA-256 of how it was cut into units (`profile.chain_digest`).
        units: how many there are.
        change: what was done to the model first; None for nothing.
        splits: operators that are cut in pieces first.
        batch, dims: the sizes of its inputs that it was planned for.
        objective: ``latency`` or ``throughput``.
        enclaves: the kinds there are.
        paging: what paging costs; None where it is refused.
        takes: bytes of the model's inputs.
        shared: runs that the cores do at once, where all enclaves are on the same ones; None for cores of their own.
        latency_ns, period_ns: predicted: of an answer, and between two.
    """

    model: str
    chain: str
    units: int
    change: Change | None
    splits: tuple[Cut, ...]
    batch: int
    dims: Mapping[str, int]
    objective: str
    enclaves: tuple[Enclaves, ...]
    paging: Paging | None
    stages: tuple[StagePlan, ...]
    takes: int
    shared: int | None
    latency_ns: int
    period_ns: int

    def to_bytes(self) -> bytes:
        """The document."""
        return canonical(self.to_wire(), cap=MAX_PLAN)

    @property
    def digest(self) -> str:
        """SHA-256 of the document, in hexadecimal digits."""
        return digest(self.to_bytes()).hex()

    @property
    def answers_per_second(self) -> float:
        """Predicted, of single inputs: a batch counts as many."""
        return self.batch * 1e9 / self.period_ns

    def to_wire(self) -> dict[str, Any]:
        """The document as JSON's values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "chain": self.chain,
            "units": self.units,
            "change": self.change
            and {
                "quantized": self.change.quantized,
                "pruned": self.change.pruned,
                "source": self.change.source,
            },
            "splits": [{"output": each.output, "pieces": each.pieces, "rows": each.rows} for each in self.splits],
            "batch": self.batch,
            "dims": dict(self.dims),
            "objective": self.objective,
            "enclaves": [
                {"name": kind.name, "memory": kind.memory, "count": kind.count, "percent": kind.percent}
                for kind in self.enclaves
            ],
            "paging": self.paging
            and {
                "page_ns": self.paging.page_ns,
                "sharpness": self.paging.sharpness,
                "source": self.paging.source,
            },
            "stages": [{name: getattr(each, name) for name in _STAGE} for each in self.stages],
            "takes": self.takes,
            "shared": self.shared,
            "latency_ns": self.latency_ns,
            "period_ns": self.period_ns,
        }

    @classmethod
    def parse(cls, raw: bytes) -> Plan:
        """Read a document.

        Raises:
            FormatError: it is not one that `to_bytes` writes.
        """
        try:
            return _plan(parse_canonical(raw, cap=MAX_PLAN))
        except UsageError as error:  # of the parts' own limits
            raise FormatError(f"plan: {error.message}") from None


_STAGE: Final = ("first", "last", "enclave", "replicas", "weights", "memory", "nanoseconds", "sends")
_FIELDS: Final = (
    "format", "version", "model", "chain", "units", "change", "splits", "batch", "dims", "objective", "enclaves",
    "paging", "stages", "takes", "shared", "latency_ns", "period_ns",
)  # fmt: skip


def _plan(wire: object) -> Plan:
    value = an_object(wire, "plan", required=_FIELDS)
    if value["format"] != FORMAT or value["version"] != VERSION or isinstance(value["version"], bool):
        raise FormatError(
            f"plan: got format {show(value['format'])} version {show(value['version'])}, wanted {VERSION}"
        )
    units = _number(value["units"], "units", 1, MAX_UNITS)
    kinds = tuple(map(_enclaves, a_list(value["enclaves"], "plan: enclaves", cap=_MAX_KINDS)))
    if value["objective"] not in OBJECTIVES:
        raise FormatError(f"plan: objective: got {show(value['objective'])}, wanted one of {', '.join(OBJECTIVES)}")
    stages = tuple(_stage(each, len(kinds)) for each in a_list(value["stages"], "plan: stages", cap=MAX_UNITS))
    ends = [0, *(each.last for each in stages)]
    if not stages or [each.first for each in stages] != ends[:-1] or ends[-1] != units:
        raise FormatError(f"plan: stages: do not cover units 0 to {units - 1} in order, once each")
    for index, kind in enumerate(kinds):
        used = sum(each.replicas for each in stages if each.enclave == index)
        if kind.count is not None and used > kind.count:
            raise FormatError(f"plan: stages: take {used} of {show(kind.name)}, wanted at most {kind.count}")
    dims = an_object(
        value["dims"], "plan: dims", optional=tuple(value["dims"]) if isinstance(value["dims"], dict) else ()
    )
    if len(dims) > _MAX_DIMS:
        raise FormatError(f"plan: dims: got {len(dims)}, wanted at most {_MAX_DIMS}")
    splits = tuple(map(_split, a_list(value["splits"], "plan: splits", cap=_MAX_SPLITS)))
    if len({each.output for each in splits}) < len(splits):
        raise FormatError("plan: splits: one operator twice")
    return Plan(
        _hex(value["model"], "model"),
        _hex(value["chain"], "chain"),
        units,
        None if value["change"] is None else _change(value["change"]),
        splits,
        _number(value["batch"], "batch", 1, 1 << 20),
        {a_name(name, "plan: dims", cap=MAX_NAME): _number(size, "dims", 1, 1 << 31) for name, size in dims.items()},
        value["objective"],
        kinds,
        None if value["paging"] is None else _paging(value["paging"]),
        stages,
        _number(value["takes"], "takes", 0, MAX_BYTES),
        None if value["shared"] is None else _number(value["shared"], "shared", 1, 1 << 20),
        _number(value["latency_ns"], "latency_ns", 1),
        _number(value["period_ns"], "period_ns", 1),
    )


def _stage(wire: object, kinds: int) -> StagePlan:
    value = an_object(wire, "plan: stage", required=_STAGE)
    first = _number(value["first"], "first", 0, MAX_UNITS - 1)
    return StagePlan(
        first,
        _number(value["last"], "last", first + 1, MAX_UNITS),
        _number(value["enclave"], "enclave", 0, kinds - 1),
        _number(value["replicas"], "replicas", 1, MAX_UNITS),
        _number(value["weights"], "weights", 0, MAX_BYTES),
        _number(value["memory"], "memory", 0, MAX_BYTES),
        _number(value["nanoseconds"], "nanoseconds", 0),
        _number(value["sends"], "sends", 0, MAX_BYTES),
    )


def _enclaves(wire: object) -> Enclaves:
    value = an_object(wire, "plan: enclave", required=("name", "memory", "count", "percent"))
    count = value["count"]
    return Enclaves(
        _number(value["memory"], "memory", 1, MAX_BYTES),
        None if count is None else _number(count, "count", 1, MAX_UNITS),
        _number(value["percent"], "percent", 1, 10_000),
        a_name(value["name"], "plan: enclave: name", cap=MAX_NAME),
    )


def _change(wire: object) -> Change:
    value = an_object(wire, "plan: change", required=("quantized", "pruned", "source"))
    if value["quantized"] not in ("", "dynamic", "static"):
        raise FormatError(f"plan: change: quantized: got {show(value['quantized'])}, wanted dynamic, static or nothing")
    return Change(
        value["quantized"], _number(value["pruned"], "pruned", 0, 999), _hex(value["source"], "change: source")
    )


def _split(wire: object) -> Cut:
    value = an_object(wire, "plan: split", required=("output", "pieces", "rows"))
    if not isinstance(value["rows"], bool):
        raise FormatError(f"plan: split: rows: got {show(value['rows'])}, wanted true or false")
    return Cut(
        a_name(value["output"], "plan: split: output", cap=MAX_NAME),
        _number(value["pieces"], "pieces", 2, _MAX_PIECES),
        value["rows"],
    )


def _paging(wire: object) -> Paging:
    value = an_object(wire, "plan: paging", required=("page_ns", "sharpness", "source"))
    return Paging(
        _number(value["page_ns"], "page_ns", 1, 10**9),
        _number(value["sharpness"], "sharpness", 100, 100_000),
        a_name(value["source"], "plan: paging: source", cap=MAX_NAME),
    )


def _number(value: object, name: str, least: int, most: int = _MAX_NUMBER) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FormatError(f"plan: {name}: got {show(value)}, wanted a whole number from {least} to {most}")
    return value


def _hex(value: object, name: str) -> str:
    if not isinstance(value, str) or not _HEX64.fullmatch(value):
        raise FormatError(f"plan: {name}: got {show(value)}, wanted 64 hexadecimal digits")
    return value
