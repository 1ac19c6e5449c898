"""The enclaves that there are, as a file says them (TOML)::

[[machine]]
name = "rack-1"
memory = "94MiB"     # that a model may take in one of its enclaves
count = 2            # enclaves; 1 if left out
speed = 1.5          # of the machine that was profiled; 1 if left out
"""

from __future__ import annotations

import tomllib
from typing import Any, Final

from strongroom.errors import FormatError, UsageError
from strongroom.serve.plan.costs import Enclaves
from strongroom.serve.plan.words import parse_size
from strongroom.serve.wire import a_list, a_name, an_object, show

_MAX: Final = 1 << 20
_MAX_KINDS: Final = 16


def parse_machines(raw: bytes) -> tuple[Enclaves, ...]:
    """The enclaves of each kind.

    Raises:
        FormatError: it is no such file.
    """
    if len(raw) > _MAX:
        raise FormatError(f"machines: {len(raw)} bytes, wanted at most {_MAX}")
    try:
        value = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"machines: is not TOML: {error}") from None
    kinds = a_list(an_object(value, "machines", required=("machine",))["machine"], "machine", cap=_MAX_KINDS)
    if not kinds:
        raise FormatError("machines: none, wanted at least one [[machine]]")
    return tuple(_machine(each, f"machine {number}") for number, each in enumerate(kinds))


def _machine(value: object, what: str) -> Enclaves:
    fields = an_object(value, what, required=("memory",), optional=("name", "count", "speed"))
    name = a_name(fields.get("name", what), f"{what}: name", cap=100)
    speed, count = fields.get("speed", 1.0), fields.get("count", 1)
    if not _number(speed) or not 0.1 <= speed <= 100:
        raise FormatError(f"{name}: speed: got {show(speed)}, wanted 0.1 to 100")
    if not isinstance(count, int) or isinstance(count, bool):
        raise FormatError(f"{name}: count: got {show(count)}, wanted a whole number")
    memory = fields["memory"]
    try:
        size = memory if isinstance(memory, int) and not isinstance(memory, bool) else parse_size(str(memory), "memory")
        return Enclaves(size, count, round(speed * 100), name)
    except UsageError as error:
        raise FormatError(f"{name}: {error.message}") from None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
