"""One comparison of an appraisal, as `appraise` makes them."""

from __future__ import annotations

from dataclasses import dataclass

from strongroom.errors import AttestationError

NOT_ASKED = "any"


@dataclass(frozen=True)
class Step:
    """One comparison of an appraisal.

    Attributes:
        number: of the list at the top of `appraise`.
        name: what is compared.
        got, wanted: in words, for a person.
        error: why it refuses; None where it holds.
        device: which of the devices, counted from 0; None for the enclave itself.
    """

    number: int
    name: str
    got: str
    wanted: str
    error: AttestationError | None = None
    device: int | None = None


def listed(
    number: int,
    name: str,
    got: str,
    wanted: tuple[str, ...] | None,
    error: type[AttestationError],
    hint: str | None = None,
) -> Step:
    """Whether `got` is one of `wanted`; None asks for nothing, and what is not told is never one."""
    if wanted is None:
        return Step(number, name, got or "none", NOT_ASKED)
    told = one_of(wanted)
    holds = bool(got) and got in wanted
    return Step(
        number,
        name,
        got or "none",
        told,
        None if holds else error(f"{name}: got {got or 'none'}, wanted {told}", hint=hint),
    )


def one_of(values: tuple[str, ...], nothing: str = "one, but the list is empty") -> str:
    return " or ".join(values) or nothing
