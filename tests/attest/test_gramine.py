"""The attester of SGX enclaves, against pseudo-files that answer as Gramine's do."""

from __future__ import annotations

import errno
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.attest.parse.dcap import parse_quote
from strongroom.attest.tee.gramine import GramineAttester, set_key
from strongroom.attest.verify import verify
from strongroom.errors import EnclaveError, FormatError, StrongroomError, UnsupportedPlatformError, UsageError
from strongroom.testing.attesters import FakeGramine, FakeMachine

VECTORS = Path(__file__).parents[1] / "vectors" / "dcap-sgx"
QUOTE = (VECTORS / "sgx_v3_icx_automata.quote.bin").read_bytes()
BOUND = QUOTE[368:432]


def recorded(report_data: bytes) -> bytes:
    """The enclave that once gave `QUOTE`; over any other report data the platform fails."""
    if report_data != BOUND:
        raise OSError(errno.EIO, "")
    return QUOTE


def bound_in(report_data: bytes) -> bytes:
    """`QUOTE` over other report data; its signature is wrong then, which attesters do not look at."""
    return QUOTE[:368] + report_data + QUOTE[432:]


def test_evidence_of_an_enclave() -> None:
    machine = FakeMachine(FakeGramine(recorded))
    attester = GramineAttester(system=machine)
    evidence = attester.evidence(BOUND)
    assert (attester.tee, evidence.tee, evidence.endorsements) == ("sgx", "sgx", b"")
    assert evidence.quote == parse_quote(QUOTE).raw
    assert machine.descriptors == 0


def test_real_evidence_verifies_with_intel_s_endorsements() -> None:
    evidence = GramineAttester(system=FakeMachine(FakeGramine(recorded))).evidence(BOUND)
    collateral = (VECTORS / "sgx_v3_icx_automata.collateral.json").read_bytes()
    now = json.loads((VECTORS / "cases.json").read_text())["sgx_v3_icx_automata"]["now"]
    claims = verify(replace(evidence, endorsements=collateral), now=now)
    assert (claims.tee, claims.report_data) == ("sgx", BOUND)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_that_gramine_would_cut_or_fill_up(size: int) -> None:
    with pytest.raises(UsageError, match=f"report data: {size} bytes, wanted 64"):
        GramineAttester(system=FakeMachine(FakeGramine(recorded))).evidence(bytes(size))


def test_a_quote_over_other_report_data_is_refused() -> None:
    fake = FakeGramine(bound_in)
    fake.before("quote", lambda: setattr(fake, "user_report_data", b"y" * 64))
    with pytest.raises(EnclaveError, match="over other report data than was written"):
        GramineAttester(system=FakeMachine(fake)).evidence(b"x" * 64)


def test_threads_get_a_quote_of_their_own_each() -> None:
    fake = FakeGramine(bound_in)
    meet = threading.Barrier(2)
    results: dict[int, bytes] = {}
    # The first thread waits with its report data written; the second must not get in between.
    fake.before("quote", lambda: threads[1].start())

    def attest(number: int) -> None:
        results[number] = GramineAttester(system=FakeMachine(fake)).evidence(bytes([number]) * 64).quote[368:432]
        meet.wait(10)

    threads = [threading.Thread(target=attest, args=(number,)) for number in (0, 1)]
    threads[0].start()
    for thread in threads:
        thread.join(20)
    assert results == {0: bytes(64), 1: b"\1" * 64}


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (None, "not in an SGX enclave"),
        (FakeGramine(recorded, attestation_type=None), "not in an SGX enclave"),
        (FakeGramine(recorded, attestation_type="none"), "got attestation type 'none', wanted 'dcap'"),
        (FakeGramine(recorded, attestation_type="epid"), "got attestation type 'epid', wanted 'dcap'"),
    ],
)
def test_where_there_are_no_quotes(fake: FakeGramine | None, words: str) -> None:
    with pytest.raises(UnsupportedPlatformError, match=words):
        GramineAttester(system=FakeMachine(*[fake] if fake else []))


def test_a_platform_that_fails() -> None:
    with pytest.raises(EnclaveError, match="making the quote failed: permission denied") as info:
        GramineAttester(system=FakeMachine(FakeGramine(recorded))).evidence(b"x" * 64)
    assert "aesmd" in str(info.value.hint)


@pytest.mark.parametrize("quote", [b"", QUOTE[:431], QUOTE[:-1], QUOTE + b"x", b"x" * 8193])
def test_what_is_no_quote_is_refused(quote: bytes) -> None:
    with pytest.raises((FormatError, EnclaveError)) as info:
        GramineAttester(system=FakeMachine(FakeGramine(lambda _: quote))).evidence(BOUND)
    assert isinstance(info.value, StrongroomError)


class TestKeys:
    def test_a_key_of_the_manifest(self) -> None:
        fake = FakeGramine(recorded, keys=("vault",))
        set_key("vault", b"k" * 16, system=FakeMachine(fake))
        assert fake.keys == {"vault": b"k" * 16}

    @pytest.mark.parametrize("size", [0, 15, 17, 32])
    def test_16_bytes_and_no_others(self, size: int) -> None:
        fake = FakeGramine(recorded, keys=("vault",))
        with pytest.raises(UsageError, match=f"key vault: {size} bytes, wanted 16"):
            set_key("vault", bytes(size), system=FakeMachine(fake))
        assert fake.keys == {"vault": b""}

    @pytest.mark.parametrize("name", ["", "_sgx_mrenclave", "../user_report_data", "a/b", ".", "a\n", "k" * 65])
    def test_names_that_are_none(self, name: str) -> None:
        with pytest.raises(UsageError, match="key name"):
            set_key(name, bytes(16), system=FakeMachine(FakeGramine(recorded)))

    def test_a_key_that_the_manifest_does_not_name(self) -> None:
        with pytest.raises(EnclaveError, match="no key vault") as info:
            set_key("vault", b"secret-of-16-byt", system=FakeMachine(FakeGramine(recorded)))
        assert "secret" not in str(info.value) + str(info.value.hint)
