"""Which fields of the files a data set has, and how they are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from strongroom.data.formats import Array
from strongroom.data.normalise import Normalise
from strongroom.data.source import Source
from strongroom.errors import FormatError, UsageError

Field = tuple[str, Source, Array]


def choose(found: Mapping[str, tuple[Source, Array]], wanted: Sequence[str] | None) -> list[Field]:
    """The fields wanted; all have one length.

    Raises:
        UsageError: there is no such field.
        FormatError: there is none at all, or they have no length or different ones.
    """
    if isinstance(wanted, str):
        raise UsageError(f"fields: the string {wanted!r}, wanted a list of names")
    names = list(found) if wanted is None else list(wanted)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UsageError(f"fields: {unknown[0]!r}, wanted some of {', '.join(sorted(found)[:50])}")
    if not names:
        raise FormatError("fields: none that hold numbers, wanted at least one")
    counts = {}
    for name in names:
        source, array = found[name]
        if not array.shape:
            raise FormatError(
                f"{source.name}: field {name!r}: a single value, wanted rows", hint="name the others with fields="
            )
        counts[name] = array.count
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:20])
        raise FormatError(f"fields: lengths {lengths}, wanted one length", hint="name those that match with fields=")
    return [(name, *found[name]) for name in names]


def normalised(chosen: Sequence[Field], normalise: Mapping[str, Normalise | None]) -> list[Field]:
    """The fields, with what is asked for in place of what their files say.

    Raises:
        UsageError: there is no such field, or its values cannot be so normalised.
    """
    check_names("normalise", normalise, chosen)
    found = []
    for name, source, array in chosen:
        how = normalise.get(name, array.normalise)
        if how:
            how.check(f"{source.name}: field {name!r}", array.shape, array.dtype, bfloat16=array.bfloat16)
        found.append((name, source, replace(array, normalise=how)))
    return found


def check_names(what: str, names: Collection[str], chosen: Sequence[Field]) -> None:
    """Raises UsageError unless `names` are some of the fields."""
    if isinstance(names, str):
        raise UsageError(f"{what}: the string {names!r}, wanted a list of names")
    known = [name for name, _, _ in chosen]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{what}: {unknown[0]!r}, wanted some of {', '.join(known[:50])}")
