"""Step 6 of an appraisal: what the vendor says of the platform's state, its versions, and revocation."""

from __future__ import annotations

from collections.abc import Iterator

from strongroom.attest.claims import Claims
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.step import NOT_ASKED, Step, listed, one_of
from strongroom.attest.words import BY_PRODUCT
from strongroom.errors import TcbError

# Whose vendor has a word for the platform's state. Where it has none, the policy must say which versions it wants.
_WITH_STATUS = ("sgx", "tdx", "azure-tdx", "simulated")
_NO_ENDORSEMENTS = "verify it with Intel's endorsements: --endorsements, --bundle or --fetch; without them it has none"


def tcb_steps(claims: Claims, reference: ReferenceValues) -> Iterator[Step]:
    """All of step 6."""
    if claims.tee in _WITH_STATUS:
        yield listed(
            6,
            "tcb status",
            claims.tcb_status,
            reference.tcb_statuses,
            TcbError,
            hint="update the platform's firmware, or list the status in the policy's tcb_statuses"
            if claims.tcb_status
            else _NO_ENDORSEMENTS,
        )
    unknown = [name for name in claims.advisories if name not in reference.advisories_allowed]
    allowed, advisories = one_of(reference.advisories_allowed, "none"), None
    if unknown:
        advisories = TcbError(
            f"advisories: got {', '.join(unknown)}, wanted {allowed}",
            hint="update the platform's firmware, or list the advisory in the policy's advisories_allowed",
        )
    yield Step(6, "advisories", ", ".join(claims.advisories) or "none", allowed, advisories)
    yield from _versions(claims, reference)
    yield _revocation(claims, reference)


def _versions(claims: Claims, reference: ReferenceValues) -> Iterator[Step]:
    """Those that the policy tells for that kind and product. AMD's have all that the product counts, or are refused."""
    floors = reference.floors(claims.tee)
    minimum = floors.get(claims.product) or floors.get("", {})
    told = ", ".join(f"{name} {version}" for name, version in claims.tcb.items()) or "none"
    if floors and not minimum:
        other = TcbError(
            f"minimum tcb: the policy has none for {claims.product or 'an unknown product'} of {claims.tee}, "
            f"but for {', '.join(floors)}",
            hint=f"add minimum_tcb.{claims.tee}.{claims.product}: the lowest versions of that product to accept",
        )
        yield Step(6, "minimum tcb", f"{claims.product or 'unknown'}: {told}", " or ".join(floors), other)
    missing = [name for name in claims.tcb if name not in minimum] if claims.tee in BY_PRODUCT else []
    if not floors and claims.tee in BY_PRODUCT:
        none = TcbError(
            f"minimum tcb: the policy has none for {claims.tee}",
            hint=f"add minimum_tcb.{claims.tee}: the lowest security versions to accept; "
            "`strongroom attest appraise --draft-policy` writes those of this evidence",
        )
        yield Step(6, "minimum tcb", told, "the policy's minimum_tcb, which it lacks", none)
    elif minimum and missing:
        less = TcbError(
            f"minimum tcb: the policy has none of {', '.join(missing)}, which {claims.product} counts",
            hint=f"say it for that product, in minimum_tcb.{claims.tee}.{claims.product}",
        )
        yield Step(6, "minimum tcb", told, f"all of {', '.join(claims.tcb)}", less)
    for name, lowest in minimum.items():
        got = claims.tcb.get(name)
        old = TcbError(
            f"tcb {name}: got {'none' if got is None else got}, wanted at least {lowest}",
            hint=_old(claims, name),
        )
        has = "none" if got is None else str(got)
        yield Step(6, f"tcb {name}", has, f"at least {lowest}", old if got is None or got < lowest else None)


def _revocation(claims: Claims, reference: ReferenceValues) -> Step:
    got = claims.revocation
    if not reference.revocation_required:
        return Step(6, "revocation", got, NOT_ASKED)
    error = TcbError(
        f"revocation: got {got}, wanted every list of those who issued its certificates",
        hint="`strongroom attest endorsements fetch` gets them from the vendor; give them with the evidence "
        "(--fetch, --bundle or --endorsements)",
    )
    return Step(6, "revocation", got, "checked", None if claims.revocation_checked else error)


def _old(claims: Claims, name: str) -> str:
    """What to do about a version that is too low or not told."""
    if name == "evaluation":
        return "verify it with newer endorsements of Intel's" if name in claims.tcb else _NO_ENDORSEMENTS
    if name not in claims.tcb:
        return f"this evidence does not tell it; it tells {', '.join(claims.tcb) or 'none'}"
    if name in ("isvsvn", "configsvn"):
        return "an older version of the program or of its configuration runs there: start the newer one"
    return "update the platform's firmware"
