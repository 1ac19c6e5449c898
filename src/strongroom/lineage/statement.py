"""The statement: an in-toto Statement v1 with an SLSA provenance v1 predicate, for one output of one run.

An enclave says what it ran and read (`Run`) and what came out (`Output`); the CAS, which appraised it, adds what it
knows itself (`Endorsement`) and signs all of it. Which member of the document is whose is in docs/spec/lineage.md.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from strongroom.attest.binding import JSON, canonical, parse_canonical
from strongroom.errors import FormatError
from strongroom.lineage.resumes import Resumes
from strongroom.sealed import Root

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:strongroom:lineage:v1"
_BUILDER = "urn:strongroom:cas:"

MAX_NAME: Final = 1024
_MAX_ITEMS = 256
_MAX_NUMBER = 2**53 - 1
_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX32 = re.compile(r"[0-9a-f]{32}")
_MEASUREMENT = re.compile(r"[0-9a-f]{96}")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True)
class Output:
    """A file that a run wrote: its path in its vault, and two digests in hexadecimal digits."""

    name: str
    sha256: str
    blake3: str

    def to_wire(self) -> dict[str, JSON]:
        return {"name": self.name, "digest": {"blake3": self.blake3, "sha256": self.sha256}}

    @classmethod
    def from_wire(cls, wire: object) -> Output:
        """Raises FormatError for what `to_wire` does not make, as every `from_wire` here."""
        value = _object(wire, "subject", ("name", "digest"))
        digests = _object(value["digest"], "subject.digest", ("blake3", "sha256"))
        return cls(
            _text(value["name"], "subject.name"),
            _match(_HEX64, digests["sha256"], "subject.digest.sha256"),
            _match(_HEX64, digests["blake3"], "subject.digest.blake3"),
        )


@dataclass(frozen=True)
class DataSet:
    """A vault as a run found it.

    Attributes:
        name, mount, access: as the policy and the boot configuration have them.
        delivery: ``memory``: what was digested is what the program could read. ``mounted``: it was digested from the
            vault after the run, whose reads were checked against the same root.
        root: of the version read.
        tree: the content digest, in hexadecimal digits.
        files, size: how many files and links, and the bytes in them.
    """

    name: str
    mount: str
    access: str
    delivery: str
    root: str
    tree: str
    files: int
    size: int

    def to_wire(self) -> dict[str, JSON]:
        return {
            "name": self.name,
            "digest": {"strongroomTree": self.tree},
            "annotations": {
                "access": self.access,
                "bytes": self.size,
                "delivery": self.delivery,
                "files": self.files,
                "mount": self.mount,
                "root": self.root,
            },
        }

    @classmethod
    def from_wire(cls, wire: object) -> DataSet:
        value = _object(wire, "dependency", ("name", "digest", "annotations"))
        digests = _object(value["digest"], "dependency.digest", ("strongroomTree",))
        notes = _object(value["annotations"], "dependency", ("access", "bytes", "delivery", "files", "mount", "root"))
        for name, options in (("access", ("read-only", "read-write")), ("delivery", ("memory", "mounted"))):
            if notes[name] not in options:
                raise FormatError(f"dependency.{name}: got {notes[name]!r:.80}, wanted {' or '.join(options)}")
        return cls(
            _text(value["name"], "dependency.name"),
            _text(notes["mount"], "dependency.mount", empty=True),
            str(notes["access"]),
            str(notes["delivery"]),
            _root(notes["root"], "dependency.root"),
            _match(_HEX64, digests["strongroomTree"], "dependency.digest"),
            _number(notes["files"], "dependency.files"),
            _number(notes["bytes"], "dependency.bytes"),
        )


@dataclass(frozen=True)
class MirrorState:
    """The mirror of a training as the run left it, with the returns from it that are on record.

    Attributes:
        step: of its newest commit; None if it has none.
    """

    name: str
    step: int | None
    root: str
    resumes: Resumes

    def to_wire(self) -> dict[str, JSON]:
        return {
            "name": self.name,
            "digest": {"strongroomRoot": Root.parse(self.root).digest.hex()},
            "annotations": {"resumes": self.resumes.to_wire(), "root": self.root, "step": self.step},
        }

    @classmethod
    def from_wire(cls, wire: object) -> MirrorState:
        value = _object(wire, "mirror", ("name", "digest", "annotations"))
        notes = _object(value["annotations"], "mirror", ("resumes", "root", "step"))
        state = cls(
            _text(value["name"], "mirror.name"),
            None if notes["step"] is None else _number(notes["step"], "mirror.step"),
            _root(notes["root"], "mirror.root"),
            Resumes.from_wire(notes["resumes"]),
        )
        if state.to_wire() != wire:
            raise FormatError("mirror.digest: is not its root's")
        return state


@dataclass(frozen=True)
class Run:
    """What an enclave says of its run.

    Attributes:
        invocation: 16 random bytes in hexadecimal digits, the same for all outputs of the run.
        started: seconds since 1970, by the enclave's clock.
        version: of Strongroom.
        boot: the boot configuration, which the measurement covers: command, environment, vaults.
        data: every vault that the program could read, as it was when the run began.
        mirrors: of training state.
    """

    invocation: str
    started: int
    version: str
    boot: Mapping[str, Any] = field(repr=False)
    data: tuple[DataSet, ...]
    mirrors: tuple[MirrorState, ...] = ()

    def to_wire(self) -> dict[str, JSON]:
        return {
            "invocation": self.invocation,
            "started": self.started,
            "version": self.version,
            "boot": dict(self.boot),
            "data": [one.to_wire() for one in self.data],
            "mirrors": [one.to_wire() for one in self.mirrors],
        }

    @classmethod
    def from_wire(cls, wire: object) -> Run:
        value = _object(wire, "run", ("invocation", "started", "version", "boot", "data", "mirrors"))
        if not isinstance(value["boot"], dict):
            raise FormatError("run.boot: wanted an object")
        data = tuple(DataSet.from_wire(one) for one in _list(value["data"], "run.data"))
        if len({one.name for one in data}) != len(data):
            raise FormatError("run.data: two of one name")
        return cls(
            _match(_HEX32, value["invocation"], "run.invocation"),
            _number(value["started"], "run.started"),
            _text(value["version"], "run.version"),
            value["boot"],
            data,
            tuple(MirrorState.from_wire(one) for one in _list(value["mirrors"], "run.mirrors")),
        )


@dataclass(frozen=True)
class Endorsement:
    """What the CAS says of the enclave, of its own knowledge.

    Attributes:
        policy, policy_version, policy_digest: under which it was appraised, the newest when this was signed.
        tee, measurement, vendor_root, tcb_status: what appraisal found.
        signed: seconds since 1970, by the CAS's clock.
    """

    cas_root: str
    policy: str
    policy_version: int
    policy_digest: str
    tee: str
    measurement: str
    vendor_root: str
    tcb_status: str
    signed: int


@dataclass(frozen=True)
class Statement:
    """One output, the run that it came out of, and who vouches for the enclave."""

    output: Output
    run: Run
    endorsement: Endorsement

    def to_bytes(self) -> bytes:
        """The document, canonical JSON. Raises FormatError if it is longer than that may be."""
        run, by = self.run, self.endorsement
        return canonical(
            {
                "_type": STATEMENT_TYPE,
                "subject": [self.output.to_wire()],
                "predicateType": PREDICATE_TYPE,
                "predicate": {
                    "buildDefinition": {
                        "buildType": BUILD_TYPE,
                        "externalParameters": {
                            "boot": dict(run.boot),
                            "policy": {
                                "digest": by.policy_digest,
                                "name": by.policy,
                                "version": by.policy_version,
                            },
                        },
                        "internalParameters": {
                            "measurement": by.measurement,
                            "tcbStatus": by.tcb_status,
                            "tee": by.tee,
                            "vendorRoot": by.vendor_root,
                        },
                        "resolvedDependencies": [one.to_wire() for one in run.data],
                    },
                    "runDetails": {
                        "builder": {"id": _BUILDER + by.cas_root, "version": {"strongroom": run.version}},
                        "byproducts": [one.to_wire() for one in run.mirrors],
                        "metadata": {
                            "finishedOn": timestamp(by.signed),
                            "invocationId": run.invocation,
                            "startedOn": timestamp(run.started),
                        },
                    },
                },
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Statement:
        """The statement that `to_bytes` made, and nothing else.

        Raises:
            FormatError: it is another document.
        """
        document = _object(parse_canonical(raw), "statement", ("_type", "subject", "predicateType", "predicate"))
        _fixed(document, "_type", STATEMENT_TYPE)
        _fixed(document, "predicateType", PREDICATE_TYPE)
        predicate = _object(document["predicate"], "predicate", ("buildDefinition", "runDetails"))
        build = _object(
            predicate["buildDefinition"],
            "buildDefinition",
            ("buildType", "externalParameters", "internalParameters", "resolvedDependencies"),
        )
        _fixed(build, "buildType", BUILD_TYPE)
        outside = _object(build["externalParameters"], "externalParameters", ("boot", "policy"))
        policy = _object(outside["policy"], "policy", ("digest", "name", "version"))
        inside = _object(
            build["internalParameters"], "internalParameters", ("measurement", "tcbStatus", "tee", "vendorRoot")
        )
        details = _object(predicate["runDetails"], "runDetails", ("builder", "byproducts", "metadata"))
        builder = _object(details["builder"], "builder", ("id", "version"))
        metadata = _object(details["metadata"], "metadata", ("finishedOn", "invocationId", "startedOn"))
        subjects = _list(document["subject"], "subject")
        if len(subjects) != 1:
            raise FormatError(f"subject: {len(subjects)} of them, wanted 1")
        run = Run.from_wire(
            {
                "invocation": metadata["invocationId"],
                "started": _seconds(metadata["startedOn"], "startedOn"),
                "version": _object(builder["version"], "builder.version", ("strongroom",))["strongroom"],
                "boot": outside["boot"],
                "data": build["resolvedDependencies"],
                "mirrors": details["byproducts"],
            }
        )
        endorsement = Endorsement(
            cas_root=_match(_FINGERPRINT, _text(builder["id"], "builder.id").removeprefix(_BUILDER), "builder.id"),
            policy=_text(policy["name"], "policy.name"),
            policy_version=_number(policy["version"], "policy.version"),
            policy_digest=_match(_FINGERPRINT, policy["digest"], "policy.digest"),
            tee=_text(inside["tee"], "tee"),
            measurement=_match(_MEASUREMENT, inside["measurement"], "measurement"),
            vendor_root=_text(inside["vendorRoot"], "vendorRoot"),
            tcb_status=_text(inside["tcbStatus"], "tcbStatus"),
            signed=_seconds(metadata["finishedOn"], "finishedOn"),
        )
        statement = cls(Output.from_wire(subjects[0]), run, endorsement)
        if statement.to_bytes() != raw:
            raise FormatError("statement: parses, but is not in the form that a CAS signs")
        return statement


def timestamp(seconds: int) -> str:
    """RFC 3339 in UTC, as in-toto has times. Raises FormatError for what no calendar has."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise FormatError("time: is in no year from 1 to 9999") from None


def _seconds(value: object, what: str) -> int:
    text = _match(_TIME, value, what)
    try:
        return int(dt.datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise FormatError(f"{what}: got {text}, wanted a time") from None


def _fixed(document: Mapping[str, Any], name: str, wanted: str) -> None:
    if document[name] != wanted:
        raise FormatError(f"{name}: got {document[name]!r:.100}, wanted {wanted}")


def _object(value: object, what: str, names: Iterable[str]) -> Mapping[str, Any]:
    wanted = sorted(names)
    if not isinstance(value, Mapping) or sorted(value) != wanted:
        got = ", ".join(sorted(map(str, value)))[:200] if isinstance(value, Mapping) else type(value).__name__
        raise FormatError(f"{what}: got {got or 'nothing'}, wanted {', '.join(wanted)}")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        raise FormatError(f"{what}: wanted a list of at most {_MAX_ITEMS}")
    return value


def _text(value: object, what: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty) or len(value) > MAX_NAME:
        raise FormatError(f"{what}: got {value!r:.100}, wanted a string of at most {MAX_NAME} characters")
    return value


def _number(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
        raise FormatError(f"{what}: got {value!r:.40}, wanted a number from 0 to 2^53 - 1")
    return value


def _match(pattern: re.Pattern[str], value: object, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise FormatError(f"{what}: got {value!r:.100}, wanted {pattern.pattern}")
    return value


def _root(value: object, what: str) -> str:
    text = _text(value, what)
    Root.parse(text)
    return text
