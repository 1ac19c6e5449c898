"""What a pipeline is: a word of every part's command, so that it is measured (docs/spec/pipeline.md).

A client that trusts the front door's measurement has with it the plan, the models of all parts to the bit, and the
policies under which the CAS appraises them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.cas.policy.places import POLICY_NAME
from strongroom.crypto import digest
from strongroom.errors import FormatError
from strongroom.serve.pipeline.room import OpenSize
from strongroom.serve.tensors import MAX_RANK, TensorInfo
from strongroom.serve.wire import a_list, a_name, an_object, show

FORMAT: Final = "strongroom-pipeline"
VERSION: Final = 1
FRAME_UNIT: Final = 4096
MAX_FRAME: Final = 1 << 30
MAX_PARTS: Final = 64
MAX_REPLICAS: Final = 64
MAX_BATCH: Final = 1024
MAX_MICROSECONDS: Final = 10_000_000
MAX_SIZE: Final = 1 << 40
MAX_TIMES: Final = 1 << 40
MAX_POWER: Final = 8
_MAX_DOCUMENT: Final = 1 << 18
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """A run of units in an enclave of its own.

    Attributes:
        policy: under which the CAS appraises it.
        digest: SHA-256 of its model's bytes, in hexadecimal digits.
        takes, gives: its tensors, in the order in which frames carry them.
        asks, answers: bytes that a frame to it, and one of it, is a multiple of.
        replicas: how many enclaves work at it at the same time.
    """

    policy: str
    digest: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    asks: int
    answers: int
    replicas: int = 1


@dataclass(frozen=True)
class Pipeline:
    """A model's parts, in the order in which they run.

    Attributes:
        name: by which requests name the model.
        model: SHA-256 of the model that was cut, in hexadecimal digits.
        plan: digest of the plan that it was cut by.
        front: the front door's policy.
        inputs, outputs: of the whole model.
        sizes: of the inputs that the model leaves open.
        times: how many times the tensors of a planned request the enclaves have memory for.
        batch: rows that run together: requests of few rows wait for each other; 1 for none.
        delay: microseconds that the first of a batch waits at most.
        tick: microseconds between two moments at which frames leave; 0 for at once.
    """

    name: str
    model: str
    plan: str
    front: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parts: tuple[Part, ...]
    sizes: tuple[OpenSize, ...]
    times: int = 1
    batch: int = 1
    delay: int = 0
    tick: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the document, in hexadecimal digits."""
        return digest(self.to_text().encode()).hex()

    def to_text(self) -> str:
        """The document: canonical JSON."""
        wire: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "model": self.model,
            "plan": self.plan,
            "front": self.front,
            "inputs": [each.to_wire() for each in self.inputs],
            "outputs": [each.to_wire() for each in self.outputs],
            "sizes": [
                {"at": [list(place) for place in each.at], "planned": each.planned, "power": each.power}
                for each in self.sizes
            ],
            "times": self.times,
            "batch": self.batch,
            "delay": self.delay,
            "tick": self.tick,
            "parts": [
                {
                    "policy": part.policy,
                    "digest": part.digest,
                    "takes": list(part.takes),
                    "gives": list(part.gives),
                    "asks": part.asks,
                    "answers": part.answers,
                    "replicas": part.replicas,
                }
                for part in self.parts
            ],
        }
        return canonical(wire, cap=_MAX_DOCUMENT).decode()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a document.

        Raises:
            FormatError: it is not one that `to_text` writes, or a part takes what none before it gives.
        """
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            raise FormatError("pipeline: is no text that UTF-8 has") from None
        value = an_object(parse_canonical(raw, cap=_MAX_DOCUMENT), "pipeline", required=_FIELDS)
        if value["format"] != FORMAT or value["version"] != VERSION or isinstance(value["version"], bool):
            raise FormatError(
                f"pipeline: got format {show(value['format'])} version {show(value['version'])}, wanted {VERSION}"
            )
        inputs, outputs = (
            tuple(map(TensorInfo.from_wire, a_list(value[key], f"pipeline: {key}"))) for key in ("inputs", "outputs")
        )
        parts = tuple(map(_part, a_list(value["parts"], "pipeline: parts", cap=MAX_PARTS)))
        known = {each.name for each in inputs}
        for number, part in enumerate(parts, 1):
            if missing := set(part.takes) - known:
                raise FormatError(f"pipeline: part {number} takes {min(missing)[:80]!r}, which nothing before it gives")
            known.update(part.gives)
        if not parts or not {each.name for each in outputs} <= known:
            raise FormatError("pipeline: parts: do not give every output")
        sizes = tuple(map(_size, a_list(value["sizes"], "pipeline: sizes")))
        if sorted(place for each in sizes for place in each.at) != _open_in(inputs):
            raise FormatError("pipeline: sizes: are not those that its inputs leave open, each once")
        times = _number(value["times"], "times", 1, MAX_TIMES)
        name = a_name(value["name"], "pipeline: name", cap=128)
        model, plan = (_hex(value[key], key) for key in ("model", "plan"))
        batch = _number(value["batch"], "batch", 1, MAX_BATCH)
        if batch > 1 and any(each.shape[:1] != (-1,) for each in (*inputs, *outputs)):
            raise FormatError("pipeline: batch: not every input and output has rows of any number")
        delay, tick = (_number(value[key], key, 0, MAX_MICROSECONDS) for key in ("delay", "tick"))
        front = _policy(value["front"])
        return cls(name, model, plan, front, inputs, outputs, parts, sizes, times, batch, delay, tick)


_FIELDS: Final = (
    "format", "version", "name", "model", "plan", "front", "inputs", "outputs", "sizes", "times", "parts", "batch",
    "delay", "tick",
)  # fmt: skip
_PART: Final = ("policy", "digest", "takes", "gives", "asks", "answers", "replicas")


def _part(wire: object) -> Part:
    value = an_object(wire, "pipeline: part", required=_PART)
    return Part(
        _policy(value["policy"]),
        _hex(value["digest"], "digest"),
        _tensor_names(value["takes"], "takes"),
        _tensor_names(value["gives"], "gives"),
        _number(value["asks"], "asks", FRAME_UNIT, MAX_FRAME),
        _number(value["answers"], "answers", FRAME_UNIT, MAX_FRAME),
        _number(value["replicas"], "replicas", 1, MAX_REPLICAS),
    )


def _size(wire: object) -> OpenSize:
    value = an_object(wire, "pipeline: size", required=("at", "planned", "power"))
    at = tuple(_place(each) for each in a_list(value["at"], "pipeline: size: at"))
    planned = _number(value["planned"], "planned", 1, MAX_SIZE)
    return OpenSize(at, planned, _number(value["power"], "power", 1, MAX_POWER))


def _place(wire: object) -> tuple[int, int]:
    place = [_number(each, "at", 0, MAX_RANK * 1024) for each in a_list(wire, "pipeline: size: at", cap=2)]
    if len(place) != 2:
        raise FormatError("pipeline: size: at: wanted an input and one of its sizes, by numbers")
    return place[0], place[1]


def _open_in(inputs: Sequence[TensorInfo]) -> list[tuple[int, int]]:
    return [(number, axis) for number, info in enumerate(inputs) for axis, size in enumerate(info.shape) if size == -1]


def _tensor_names(value: object, key: str) -> tuple[str, ...]:
    found = tuple(a_name(each, f"pipeline: {key}") for each in a_list(value, f"pipeline: {key}"))
    if len(set(found)) < len(found):
        raise FormatError(f"pipeline: {key}: one tensor twice")
    return found


def _number(value: object, key: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FormatError(f"pipeline: {key}: got {show(value)}, wanted {least} to {most}")
    return value


def _policy(value: object) -> str:
    if not isinstance(value, str) or not POLICY_NAME.fullmatch(value):
        raise FormatError(f"pipeline: policy: got {show(value)}, wanted namespace/name")
    return value


def _hex(value: object, key: str) -> str:
    if not isinstance(value, str) or not _HEX64.fullmatch(value):
        raise FormatError(f"pipeline: {key}: got {show(value)}, wanted 64 hexadecimal digits")
    return value


def command(pipeline: Pipeline, number: int) -> tuple[str, ...]:
    """The command of a part; of the front door, whose number is 0."""
    return (WORD, str(number), pipeline.to_text())


WORD: Final = "--pipeline"
"""The first word of such a command: no model's path begins like that, since vaults hold no such names."""


def of_command(words: Sequence[str]) -> tuple[Pipeline, int] | None:
    """The pipeline, and the number of the part; None if the command is of a service without parts.

    Raises:
        FormatError: it is none that `command` gives.
    """
    if not words or words[0] != WORD:
        return None
    if len(words) != 3 or not re.fullmatch(r"0|[1-9][0-9]{0,3}", words[1]):
        raise FormatError("command: wanted --pipeline, the number of a part, and the document")
    pipeline, number = Pipeline.parse(words[2]), int(words[1])
    if number > len(pipeline.parts):
        raise FormatError(f"command: got part {number}, and there are {len(pipeline.parts)}")
    return pipeline, number
