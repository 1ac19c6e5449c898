"""Which attester a machine has, and the one of Nitro enclaves."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from strongroom.attest.parse.nitro import parse_nitro
from strongroom.attest.tee import nitro
from strongroom.attest.tee.here import here
from strongroom.attest.tee.nitro import NitroAttester
from strongroom.attest.tee.tpm import VARIABLE
from strongroom.errors import (
    EnclaveError,
    FormatError,
    MissingDependencyError,
    StrongroomError,
    UnsupportedPlatformError,
    UsageError,
)
from strongroom.testing.attesters import FakeGramine, FakeMachine, FakeNsm, FakeTsm, recorded
from strongroom.testing.machine import Part

BOUND = bytes(range(64))


def cbor(value: object) -> bytes:
    """What these tests need of RFC 8949."""

    def head(major: int, size: int) -> bytes:
        if size < 24:
            return bytes([major << 5 | size])
        width = next(width for width in (1, 2, 4, 8) if size < 256**width)
        return bytes([major << 5 | 23 + width.bit_length()]) + size.to_bytes(width)

    match value:
        case None:
            return b"\xf6"
        case int():
            return head(0, value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value)) + value.encode()
        case list():
            return head(4, len(value)) + b"".join(map(cbor, value))
        case Mapping():
            return head(5, len(value)) + b"".join(cbor(key) + cbor(each) for key, each in value.items())
    raise AssertionError(value)


def document(user_data: bytes) -> bytes:
    """A document in the module's format; nobody signed it, which attesters do not look at."""
    payload = {
        "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
        "digest": "SHA384",
        "timestamp": 1_725_720_000_000,
        "pcrs": {index: bytes([index]) * 48 for index in range(16)},
        "certificate": b"leaf",
        "cabundle": [b"root"],
        "public_key": None,
        "user_data": user_data,
        "nonce": None,
    }
    return cbor([bytes.fromhex("a1013822"), {}, cbor(payload), bytes(96)])


def attester(fake: FakeNsm) -> NitroAttester:
    return NitroAttester(system=FakeMachine(fake), ioctl=fake.ioctl)


class TestNitro:
    def test_the_test_s_documents_are_documents(self) -> None:
        assert parse_nitro(document(BOUND)).user_data == BOUND

    def test_evidence_of_an_enclave(self) -> None:
        fake = FakeNsm(document)
        machine = FakeMachine(fake)
        found = NitroAttester(system=machine, ioctl=fake.ioctl)
        evidence = found.evidence(BOUND)
        assert (found.tee, evidence.tee, evidence.quote, evidence.endorsements) == (
            "nitro",
            "nitro",
            document(BOUND),
            b"",
        )
        assert machine.descriptors == 0

    def test_the_number_of_the_ioctl(self) -> None:
        # _IOWR: direction 3, 32 bytes, type 0x0A, number 0.
        assert nitro.IOCTL_RAW == 0xC0200A00

    def test_report_data_has_64_bytes(self) -> None:
        with pytest.raises(UsageError, match="report data: 63 bytes, wanted 64"):
            attester(FakeNsm(document)).evidence(bytes(63))

    def test_a_document_over_other_report_data_is_refused(self) -> None:
        with pytest.raises(EnclaveError, match="over other report data than was asked for"):
            attester(FakeNsm(lambda _: document(bytes(64)))).evidence(BOUND)

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (cbor({"Error": "InternalError"}), "the module refused: 'InternalError'"),
            (cbor({"Error": "\x1b[31m" + "x" * 100}), r"refused: '\\x1b\[31mx+'$"),
            (b"", "an answer of 0 bytes"),
            (cbor({}), "something else than a document"),
            (cbor([]), "something else than a document"),
            (cbor({"Attestation": {"document": "text"}}), "something else than a document"),
            (cbor({"Attestation": {"document": b"x"}}), "nitro document"),
            (cbor({"Attestation": {"document": document(BOUND)}}) + b"\0", "bytes after it"),
            (b"\xa1", "CBOR"),
        ],
    )
    def test_answers_that_are_no_document(self, answer: bytes, words: str) -> None:
        fake = FakeNsm(document)
        fake.answer = answer
        with pytest.raises((EnclaveError, FormatError), match=words):
            attester(fake).evidence(BOUND)

    def test_a_length_that_no_buffer_has(self) -> None:
        def ioctl(fd: int, number: int, raw: bytearray) -> None:
            struct.pack_into("<Q", raw, 24, 2**63)

        with pytest.raises(EnclaveError, match="wanted 1 to 12288"):
            NitroAttester(system=FakeMachine(FakeNsm(document)), ioctl=ioctl).evidence(BOUND)

    @pytest.mark.parametrize(
        ("name", "number", "kind"),
        [
            ("open", errno.EACCES, UnsupportedPlatformError),
            ("open", errno.EBUSY, EnclaveError),
            ("ioctl", errno.EPERM, UnsupportedPlatformError),
            ("ioctl", errno.ETIMEDOUT, EnclaveError),
        ],
    )
    def test_a_device_that_fails(self, name: str, number: int, kind: type[StrongroomError]) -> None:
        fake = FakeNsm(document)
        fake.fail(name, number)
        with pytest.raises(kind, match=os.strerror(number).lower()):
            attester(fake).evidence(BOUND)

    def test_the_system_s_own_ioctl_on_a_device_that_is_another(self) -> None:
        pytest.importorskip("fcntl")

        class Elsewhere(FakeMachine):
            def open(self, path: str, flags: int, /) -> int:
                return os.open(os.devnull, flags)

            def close(self, fd: int, /) -> None:
                os.close(fd)

        with pytest.raises(EnclaveError, match=os.strerror(errno.ENOTTY).lower()):
            NitroAttester(system=Elsewhere()).evidence(BOUND)

    def test_elsewhere(self) -> None:
        with pytest.raises(UnsupportedPlatformError, match="no /dev/nsm"):
            NitroAttester(system=FakeMachine(), ioctl=FakeNsm(document).ioctl)


def tsm(provider: str | None) -> FakeTsm:
    return FakeTsm(provider, recorded({}))


def gramine(kind: str | None = "dcap") -> FakeGramine:
    return FakeGramine(bytes, attestation_type=kind)


@pytest.fixture(autouse=True)
def no_tpm_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


class TestHere:
    @pytest.mark.parametrize(
        ("parts", "tee"),
        [
            ([gramine(), tsm("tdx_guest"), FakeNsm(document)], "sgx"),
            ([tsm("tdx_guest"), FakeNsm(document)], "tdx"),
            ([tsm("sev_guest")], "snp"),
            ([gramine(None), tsm("sev_guest")], "snp"),
            ([tsm(None), FakeNsm(document)], "nitro"),
            ([FakeNsm(document)], "nitro"),
        ],
    )
    def test_the_narrowest_enclosure(self, parts: list[Part], tee: str) -> None:
        machine = FakeMachine(*parts)
        assert here(system=machine).tee == tee
        assert machine.descriptors == 0

    @pytest.mark.parametrize("parts", [[], [tsm(None)], [gramine(None)]])
    def test_nothing(self, parts: list[Part]) -> None:
        with pytest.raises(UnsupportedPlatformError, match="no attester on this machine") as info:
            here(system=FakeMachine(*parts))
        assert "simulated" in str(info.value.hint)

    def test_what_cannot_be_used_is_never_replaced_by_something_weaker(self) -> None:
        with pytest.raises(UnsupportedPlatformError, match="attestation type 'none'"):
            here(system=FakeMachine(gramine("none"), tsm("tdx_guest")))
        closed = tsm("tdx_guest")
        closed.fail("mkdir", errno.EACCES)
        with pytest.raises(UnsupportedPlatformError, match="not for this user"):
            here(system=FakeMachine(closed, FakeNsm(document)))
        with pytest.raises(UnsupportedPlatformError, match="arm_cca_guest"):
            here(system=FakeMachine(tsm("arm_cca_guest"), FakeNsm(document)))

    def test_a_tpm_comes_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # One that somebody named: it is asked for, though none is there.
        monkeypatch.setenv(VARIABLE, "device:/nonexistent/tpm")
        assert here(system=FakeMachine(FakeNsm(document))).tee == "nitro"
        with pytest.raises((UnsupportedPlatformError, MissingDependencyError), match="tpm"):
            here(system=FakeMachine())

    def test_this_machine_answers(self) -> None:
        try:
            found = here()
        except (EnclaveError, MissingDependencyError) as error:
            assert error.message
        else:
            assert found.tee in ("sgx", "tdx", "snp", "nitro", "tpm")

    def test_asking_who_makes_reports_imports_nothing_heavy(self) -> None:
        code = "import sys, strongroom.attest.tee.tsm; assert not {'cryptography', 'numpy'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_page_s_example_without_hardware_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "attesters.md").read_text()
    example = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[-1]
    exec(compile(example, "docs/how-to/attesters.md", "exec"), {})  # noqa: S102
