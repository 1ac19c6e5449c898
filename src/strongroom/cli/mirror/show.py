"""`strongroom mirror show`: what a commit holds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from strongroom.cli import output
from strongroom.cli.mirror.reading import opening, print_table, size
from strongroom.errors import FormatError, UsageError, printable
from strongroom.mirror.manifest import Entry
from strongroom.mirror.restored import Restored, read
from strongroom.mirror.state import decode

_SHOWN: Final = 8  # numbers of a long list
_WIDTH: Final = 100  # of a value in text
_CHUNK: Final = 1 << 20  # elements that are looked at together


def show(args: argparse.Namespace) -> int:
    key, anchor = opening(args)
    with read(args.mirror, key=key, anchor=anchor, step=args.step) as found:
        name = _name(args.name, found)
        if name is not None and name in found.arrays:
            return _show_array(args, found, found.arrays[name])
        arrays = [one for one in found.arrays.values() if name is None or one.name.startswith(f"{name}/")]
        values = {path: value for path, value in values_of(found) if _lies_in(path, name)}
        if name is not None and not arrays and not values:
            raise UsageError(
                f"name: step {found.step} holds no {args.name}", hint="`strongroom mirror show` without it lists all"
            )
        if args.json:
            wire = {"step": found.step, "time": found.time, "root": str(found.root)}
            wire |= {"resumes": found.manifest.resumes.to_wire()}
            output.result(wire | {"arrays": [_wire(one) for one in arrays], "values": values})
            return 0
        resumes = found.manifest.resumes
        if resumes.count and name is None:
            steps = ", ".join(str(one.step) for one in resumes.listed[-_SHOWN:])
            left_out = "..., " if resumes.count > _SHOWN else ""
            output.stdout.print(f"resumed {resumes.count:,} times, at step {left_out}{steps}\n", markup=False)
        if arrays:
            rows = [[one.name, one.dtype, _shape(one), size(one.nbytes)] for one in arrays]
            print_table(["array", "type", "shape", "size"], rows, right={"size"})
        if arrays and values:
            output.stdout.print()
        if values:
            print_table(["value", ""], [[path, _brief(value)] for path, value in values.items()])
    return 0


def _name(name: str | None, found: Restored) -> str | None:
    """A name as it was given, or in ``parts``, where adapters put theirs."""
    if name is None:
        return None
    name = name.strip("/")
    top = name.partition("/")[0]
    return name if top in found or "parts" not in found else f"parts/{name}"


def _show_array(args: argparse.Namespace, found: Restored, entry: Entry) -> int:
    numbers = statistics(entry, found.array(entry.name))
    if args.json:
        output.result({"step": found.step, **_wire(entry), "statistics": numbers})
        return 0
    rows = {"array": entry.name, "type": entry.dtype, "shape": _shape(entry), "size": size(entry.nbytes)}
    if numbers:
        rows |= {name: f"{numbers[name]:.6g}" for name in ("min", "mean", "max")}
        if numbers["not_finite"]:
            rows["not finite"] = f"{numbers['not_finite']:,}"
    for name, text in rows.items():
        output.stdout.print(f"{name:12} {printable(text)}", markup=False, soft_wrap=True)
    return 0


def _wire(entry: Entry) -> dict[str, object]:
    return {"name": entry.name, "type": entry.dtype, "shape": list(entry.shape), "bytes": entry.nbytes}


def _shape(entry: Entry) -> str:
    return " x ".join(map(str, entry.shape)) or "scalar"


# The parts of a state that are no arrays.


class _Elsewhere:
    """In place of an array in the state."""

    def __str__(self) -> str:
        return "array"


def values_of(found: Restored) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in the state that is no array, as JSON can have it.

    Raises:
        FormatError: the state has not its form.
    """
    count = len(found.arrays)

    def absent(kind: str, index: int) -> _Elsewhere:
        if not 0 <= index < count:
            raise FormatError(f"mirror state: array {index}, wanted 0 to {count - 1}")
        return _Elsewhere()

    for name, raw in found._parts.items():
        yield from _leaves(decode(raw, absent), name)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        if any(isinstance(part, (dict, list, tuple, _Elsewhere)) for part in value):
            for i, part in enumerate(value):
                yield from _leaves(part, f"{path}/{i}")
        else:
            yield path, [_plain(part) for part in value]
    elif not isinstance(value, _Elsewhere):
        yield path, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return repr(value)
    return f"{len(value):,} bytes" if isinstance(value, bytes) else value


def _lies_in(path: str, name: str | None) -> bool:
    return name is None or path == name or path.startswith(f"{name}/")


def _brief(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN:
        return f"{', '.join(_brief(part) for part in value[:_SHOWN])}, ... {len(value):,} values"
    if isinstance(value, list):
        return ", ".join(_brief(part) for part in value) or "none"
    text = value if isinstance(value, str) else repr(value)
    return printable(text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}...")


# Numbers.


def statistics(entry: Entry, array: npt.NDArray[Any]) -> dict[str, Any] | None:
    """``min``, ``mean`` and ``max`` of what is finite, and how many are ``not_finite``; None if that makes no sense."""
    flat, table = array.reshape(-1), _small_floats(entry.dtype)
    if not flat.size or (table is None and flat.dtype.kind not in "biuf"):
        return None
    low: Any = None
    high: Any = None
    total, count = 0.0, 0
    for at in range(0, flat.size, _CHUNK):
        part = flat[at : at + _CHUNK]
        if entry.dtype == "bfloat16":
            part = (part.astype(np.uint32) << 16).view(np.float32)
        elif table is not None:
            part = table[part]
        part = part[np.isfinite(part)] if part.dtype.kind == "f" else part
        if part.size:
            low = part.min() if low is None else min(low, part.min())
            high = part.max() if high is None else max(high, part.max())
            with np.errstate(over="ignore"):
                total += float(part.sum(dtype=np.float64))
            count += part.size
    if not count:
        return None
    return {
        "min": low.item(),
        "mean": total / count,
        "max": high.item(),
        "not_finite": flat.size - count,
    }


def _small_floats(dtype: str) -> npt.NDArray[np.float32] | None:
    """What each number of a type that NumPy lacks stands for (of bfloat16 nothing: it is the half of a float32)."""
    if dtype == "bfloat16":
        return np.empty(0, np.float32)
    if not dtype.startswith("float8_"):
        return None
    bits = np.arange(256)
    mantissa = 3 if "e4m3" in dtype else 2
    fnuz = dtype.endswith("fnuz")
    bias = (7 if mantissa == 3 else 15) + fnuz
    exponent, fraction = (bits & 0x7F) >> mantissa, bits & ((1 << mantissa) - 1)
    scale = np.exp2(np.maximum(exponent, 1).astype(np.float64) - bias - mantissa)
    value = np.where(exponent > 0, fraction + (1 << mantissa), fraction) * scale
    value = np.where(bits & 0x80, -value, value)
    if fnuz:
        value[0x80] = np.nan
    elif mantissa == 3:
        value[[0x7F, 0xFF]] = np.nan
    else:
        value[(bits & 0x7C) == 0x7C] = np.nan  # infinities are not finite either
    return np.asarray(value, np.float32)
