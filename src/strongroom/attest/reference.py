"""Reference values: what a policy accepts of an enclave. What is absent is refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from strongroom.attest.evidence import DEVICES, MAX_DEVICES, TEES
from strongroom.attest.verify.anchors import VENDORS, Anchors
from strongroom.attest.words import (
    AMD_VERSIONS,
    BY_PRODUCT,
    COMMON_AMD_VERSIONS,
    HARDWARE_IDS,
    INTEL_STATUSES,
    PLATFORMS,
    PROGRAM_REGISTERS,
    REGISTERS,
    SIGNERS,
    VERSIONS,
    WEAKNESSES,
    Sizes,
)
from strongroom.errors import PolicyError

_ROOT_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MEASUREMENT = re.compile(r"[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}")
ANY = "any"
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_LISTS = (
    "tees",
    "measurements",
    "tcb_statuses",
    "advisories_allowed",
    "signers",
    "hardware_ids",
    "tpm_roots",
    "weaknesses_allowed",
    "other_programs",
)


@dataclass(frozen=True)
class ReferenceValues:
    """What a policy accepts. What is absent is refused; what is None is not asked for.

    Attributes:
        tees: kinds of enclave, from `TEES`.
        measurements: as in `Claims.measurement`, or of kinds in `platforms` as in `Claims.program`; an empty tuple
            accepts no enclave.
        tcb_statuses: Intel's words for a platform's state, for `sgx`, `tdx` and `simulated`.
        advisories_allowed: advisories that the policy's author has judged.
        allow_simulated: ``sha256:<hex>`` of the one simulated vendor root to accept. A simulated enclave or device
            protects nothing against its machine's owner. For an enclave, `simulated` must be among `tees` as well.
        minimum_tcb: for each tee, the lowest security version numbers to accept, by the vendor's names, as in
            `Claims.tcb`. `snp` and `azure-snp` need theirs, with all that AMD counts (`words.AMD_VERSIONS`): it has no
            word for a platform that is up to date. As it counts each product's by themselves, they may instead be
            tables by `Claims.product`, and then other products are refused.
        signers: as in `Claims.signer`: one of them must have signed what was loaded.
        registers: of each register named, the values to accept.
        hardware_ids: the processors to accept, as in `Claims.hardware_id`.
        tpm_roots: for `tpm`, ``sha256:<hex>`` of the roots to accept: of a certificate, or of an enrolled key's
            SubjectPublicKeyInfo.
        weaknesses_allowed: from `words.WEAKNESSES`, those that the policy's author has judged.
        maximum_age: seconds that evidence may be old. With it, evidence that its vendor does not date is refused.
        revocation_required: refuse evidence whose certificates can be revoked, if not every list that says so was
            checked (`Claims.revocation`). Else lists are obeyed where they came along, which is as the prover likes.
        devices: what every device must be. If None, no device may be shown; else at least one must.
        count: of `devices` alone: exactly how many must be shown.
        platforms: for each tee that is a whole machine, on which a launcher starts programs: of each register named,
            the values to accept; ``measurement`` names `Claims.measurement`. Evidence of that kind must then be of a
            program, and `measurements` are of programs. `words.PLATFORMS` says what must be there.
        other_programs: measurements that may have been started on that machine besides, or ``any``. Which were, SNP's
            evidence never tells: it needs ``any``.

    Raises:
        PolicyError: a value is not of that form, or a word or a length that evidence of these `tees` never has
            (`words`).
    """

    tees: tuple[str, ...]
    measurements: tuple[str, ...]
    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    advisories_allowed: tuple[str, ...] = ()
    allow_simulated: str | None = None
    minimum_tcb: Mapping[str, Mapping[str, int] | Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    signers: tuple[str, ...] | None = None
    registers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hardware_ids: tuple[str, ...] | None = None
    tpm_roots: tuple[str, ...] = ()
    weaknesses_allowed: tuple[str, ...] = ()
    maximum_age: int | None = None
    revocation_required: bool = False
    devices: ReferenceValues | None = None
    count: int | None = None
    platforms: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    other_programs: tuple[str, ...] = ()

    def floors(self, tee: str) -> Mapping[str, Mapping[str, int]]:
        """`minimum_tcb` of that kind by product; by the empty string where it is for all products alike."""
        versions = self.minimum_tcb.get(tee) or {}
        tables = {name: value for name, value in versions.items() if isinstance(value, Mapping)}
        numbers = {name: value for name, value in versions.items() if not isinstance(value, Mapping)}
        return tables | ({"": numbers} if numbers else {})

    @property
    def anchors(self) -> Anchors:
        """Where `verify` may let chains end: at the vendors' roots, and at those that this policy names by digest."""
        simulated = None if self.devices is None else self.devices.allow_simulated
        return replace(VENDORS, named=frozenset(self.tpm_roots) | ({simulated} if simulated else set()))

    def __post_init__(self) -> None:
        for name in _LISTS:
            values = getattr(self, name)
            if values is not None or name not in ("signers", "hardware_ids"):
                object.__setattr__(self, name, _strings(name, values))
        _check_words("tees", self.tees, TEES)
        _check_words("tcb_statuses", self.tcb_statuses, INTEL_STATUSES)
        _check_words("weaknesses_allowed", self.weaknesses_allowed, WEAKNESSES)
        for measurement in self.measurements:
            if not MEASUREMENT.fullmatch(measurement):
                raise PolicyError(
                    f"measurements: got {_short(measurement)}, wanted 64, 96 or 128 lower-case hexadecimal digits"
                )
        for name, known in (("signers", SIGNERS), ("hardware_ids", HARDWARE_IDS)):
            values = getattr(self, name) or ()
            for value in values:
                if not _HEX.fullmatch(value):
                    raise PolicyError(f"{name}: got {_short(value)}, wanted lower-case hexadecimal digits")
            if values and not any(tee in known for tee in self.tees):
                raise PolicyError(
                    f"{name}: got some, but evidence of {' or '.join(self.tees)} tells none",
                    hint=f"leave it out: kinds that tell theirs are {', '.join(known)}",
                )
            self._check_sizes(name, values, {tee: known[tee] for tee in self.tees if tee in known})
        for root in (*self.tpm_roots, *([] if self.allow_simulated is None else [self.allow_simulated])):
            if not isinstance(root, str) or not _ROOT_DIGEST.fullmatch(root):
                where = "tpm_roots" if root in self.tpm_roots else "allow_simulated"
                raise PolicyError(
                    f'{where}: got {_short(root)}, wanted "sha256:" and 64 hexadecimal digits',
                    hint="name the digest of the one root to accept",
                )
        self._check_registers()
        self._check_platforms()
        self._check_tables()

    def _check_registers(self) -> None:
        if not isinstance(self.registers, Mapping):
            raise PolicyError(f"registers: got {_short(self.registers)}, wanted a table")
        registers = {name: _strings(f"registers.{name}", values) for name, values in self.registers.items()}
        known = {name for tee in self.tees for name in REGISTERS[tee]}
        for name, values in registers.items():
            if name not in known:
                raise PolicyError(
                    f"registers.{name[:40]}: no register of {' or '.join(self.tees)}, wanted some of {_series(known)}",
                    hint=_suggestion(name, known),
                )
            if not values or not all(_HEX.fullmatch(value) for value in values):
                raise PolicyError(f"registers.{name}: wanted at least one value of lower-case hexadecimal digits")
            sizes = {tee: REGISTERS[tee][name] for tee in self.tees if name in REGISTERS[tee]}
            self._check_sizes(f"registers.{name}", values, sizes)
        object.__setattr__(self, "registers", registers)

    def _check_platforms(self) -> None:
        if not isinstance(self.platforms, Mapping):
            raise PolicyError(f"platforms: got {_short(self.platforms)}, wanted a table for each tee")
        platforms: dict[str, dict[str, tuple[str, ...]]] = {}
        for tee, pinned in self.platforms.items():
            if tee not in PLATFORMS or tee not in self.tees or not isinstance(pinned, Mapping):
                kinds = [each for each in self.tees if each in PLATFORMS]
                raise PolicyError(
                    f"platforms.{str(tee)[:20]}: wanted a table for {' or '.join(kinds) or 'none of these tees'}",
                    hint=f"kinds that are a whole machine are {', '.join(PLATFORMS)}; name it in tees too",
                )
            known = {"measurement": (48,), **REGISTERS[tee]}
            known.pop(PROGRAM_REGISTERS.get(tee, ""), None)
            platforms[tee] = {}
            for name, values in pinned.items():
                path = f"platforms.{tee}.{str(name)[:40]}"
                if name not in known or (name == "measurement" and tee in PROGRAM_REGISTERS):
                    raise PolicyError(
                        f"{path}: nothing that a platform of {tee} has, wanted some of {_series(known)}",
                        hint="it holds the programs, which are the policy's measurements"
                        if name in (PROGRAM_REGISTERS.get(tee), "measurement")
                        else _suggestion(str(name), known),
                    )
                platforms[tee][name] = _strings(path, values)
                if not values or not all(_HEX.fullmatch(value) for value in platforms[tee][name]):
                    raise PolicyError(f"{path}: wanted at least one value of lower-case hexadecimal digits")
                self._check_sizes(path, platforms[tee][name], {tee: known[name]})
            if missing := [name for name in PLATFORMS[tee] if name not in pinned]:
                raise PolicyError(
                    f"platforms.{tee}: lacks {', '.join(missing)}, wanted at least {', '.join(PLATFORMS[tee])}",
                    hint="what is not pinned may be anything: `strongroom attest expect` says what a machine boots to",
                )
        object.__setattr__(self, "platforms", platforms)
        for other in self.other_programs:
            if other != ANY and not MEASUREMENT.fullmatch(other):
                raise PolicyError(f'other_programs: got {_short(other)}, wanted measurements, or "{ANY}"')
        if self.other_programs and not platforms:
            raise PolicyError("other_programs: got some, but no platforms", hint="only of machines it is known")
        if ANY in self.other_programs and len(self.other_programs) > 1:
            raise PolicyError(f'other_programs: got "{ANY}" and others, wanted one or the other')
        if "snp" in platforms and ANY not in self.other_programs:
            raise PolicyError(
                f'other_programs: got {self.other_programs or "none"}, wanted "{ANY}" for platforms.snp',
                hint="evidence of SNP never tells what else was started on that machine",
            )

    def _check_sizes(self, name: str, values: Iterable[str], known: Mapping[str, Sizes]) -> None:
        """Whether each of these values, in hexadecimal digits, can be one that evidence of these tees tells."""
        sizes = sorted({size for each in known.values() for size in each})
        for value in values:
            if len(value) // 2 not in sizes:
                told = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 8 else " or ".join(map(str, sizes))
                got = f"{_short(value)}, of {len(value) // 2}"
                raise PolicyError(f"{name}: got {got}, wanted {told} bytes, as {' or '.join(known)} has")

    def _check_tables(self) -> None:
        if not isinstance(self.minimum_tcb, Mapping):
            raise PolicyError(f"minimum_tcb: got {_short(self.minimum_tcb)}, wanted a table for each tee")
        for tee, versions in self.minimum_tcb.items():
            if tee not in TEES or not isinstance(versions, Mapping) or not versions:
                raise PolicyError(f"minimum_tcb.{tee}: wanted a table of numbers for one of {', '.join(TEES)}")
            if tee in BY_PRODUCT and any(isinstance(value, Mapping) for value in versions.values()):
                for product, table in versions.items():
                    if product not in AMD_VERSIONS or not isinstance(table, Mapping):
                        raise PolicyError(
                            f"minimum_tcb.{tee}.{_short(product)}: next to tables by product, wanted one of "
                            f"{', '.join(AMD_VERSIONS)}, and a table of numbers for it"
                        )
                    _check_versions(f"minimum_tcb.{tee}.{product}", table, AMD_VERSIONS[product], AMD_VERSIONS[product])
            else:
                needed = COMMON_AMD_VERSIONS if tee in BY_PRODUCT else ()
                _check_versions(f"minimum_tcb.{tee}", versions, VERSIONS.get(tee, ()), needed)
        age = self.maximum_age
        if age is not None and (type(age) is not int or age <= 0):
            raise PolicyError(f"maximum_age: got {_short(age)}, wanted seconds, at least 1")
        if type(self.revocation_required) is not bool:
            raise PolicyError(f"revocation_required: got {_short(self.revocation_required)}, wanted true or false")
        self._check_devices()

    def _check_devices(self) -> None:
        of_devices = set(self.tees) & set(DEVICES)
        if of_devices and of_devices != set(self.tees):
            raise PolicyError(
                f"tees: got {', '.join(self.tees)}, wanted kinds of enclaves or of devices",
                hint="what a policy wants of devices is its table devices",
            )
        if self.count is not None:
            if type(self.count) is not int or not 1 <= self.count <= MAX_DEVICES:
                raise PolicyError(f"count: got {_short(self.count)}, wanted how many devices, 1 to {MAX_DEVICES}")
            if not of_devices:
                raise PolicyError(f"count: got {self.count} for {', '.join(self.tees) or 'no kind'}, wanted devices")
        devices = self.devices
        if devices is None:
            return
        if not isinstance(devices, ReferenceValues):
            raise PolicyError(f"devices: got {_short(devices)}, wanted reference values")
        if of_devices or not devices.tees or set(devices.tees) - set(DEVICES) or devices.devices:
            got = "a device's own devices" if of_devices else _short(devices.tees)
            raise PolicyError(f"devices.tees: got {got}, wanted some of {', '.join(DEVICES)}")


def _check_versions(path: str, versions: Mapping[str, object], known: Collection[str], needed: Collection[str]) -> None:
    """Whether a table of lowest versions names such as are known, and all that are needed."""
    for name, version in versions.items():
        if name not in known:
            raise PolicyError(
                f"{path}.{str(name)[:40]}: no version of {path.partition('.')[2]}, wanted some of "
                f"{', '.join(known) or 'none: it tells none'}",
                hint=_suggestion(str(name), known),
            )
        if type(version) is not int or version < 0:
            raise PolicyError(f"{path}.{name}: got {_short(version)}, wanted a number")
    missing = [name for name in needed if name not in versions]
    if missing:
        raise PolicyError(
            f"{path}: lacks {', '.join(missing)}, wanted all of {', '.join(needed)}",
            hint="what is not named would be accepted however old: "
            "`strongroom attest appraise --draft-policy` writes those of a machine",
        )


def _check_words(name: str, values: Iterable[str], known: Collection[str]) -> None:
    for value in values:
        if value not in known:
            raise PolicyError(
                f"{name}: got {_short(value)}, wanted some of {', '.join(known)}", hint=_suggestion(value, known)
            )


def _suggestion(word: str, known: Iterable[str]) -> str | None:
    by_folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:80].lower(), by_folded, 1)
    return f"did you mean {by_folded[near[0]]}?" if near else None


def _series(names: Iterable[str]) -> str:
    """Names for a person: ``host_data, pcr0 to pcr31``."""
    numbers: dict[tuple[str, str], list[int]] = {}
    plain = []
    for name in names:
        numbered = re.fullmatch(r"([a-z]+)([0-9]+)(.*)", name)
        if numbered:
            numbers.setdefault((numbered[1], numbered[3]), []).append(int(numbered[2]))
        else:
            plain.append(name)
    series = [f"{a}{min(each)}{z} to {a}{max(each)}{z}" for (a, z), each in sorted(numbers.items()) if not z]
    return ", ".join(sorted(plain) + series)


def _strings(name: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise PolicyError(f"{name}: got {_short(values)}, wanted a list of strings")
    return tuple(values)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
