"""The attester of confidential VMs, against a kernel that answers as Linux does."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.parse.certificate_table import ARK, ASK, VCEK, VLEK
from strongroom.attest.parse.dcap import parse_quote
from strongroom.attest.parse.endorsements import parse_endorsements
from strongroom.attest.tee import tsm
from strongroom.attest.tee.configfs import ConfigfsAttester
from strongroom.attest.tee.rtmr import extend_rtmr, read_rtmr
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.attest.tee.system import read_whole, write_once
from strongroom.attest.verify import VENDORS, verify
from strongroom.attest.verify.anchors import AMD_INTERMEDIATES
from strongroom.crypto import digest
from strongroom.crypto.chains import VendorCertificate
from strongroom.errors import (
    EnclaveError,
    FormatError,
    LockedError,
    StrongroomError,
    UnsupportedPlatformError,
    UsageError,
)
from strongroom.testing.attesters import FakeMachine, FakeRtmrs, FakeTsm, recorded
from tests.attest.test_certificate_table import table

SNP = Path(__file__).parents[1] / "vectors" / "sev-snp"
REPORT = (SNP / "milan_v2.report.bin").read_bytes()
LEAF = (SNP / "milan_v2.leaf.der").read_bytes()
BOUND = REPORT[0x50:0x90]
ASK_DER, ARK_DER = AMD_INTERMEDIATES["Milan"][0].der, VENDORS.amd["Milan"].der
CERTIFICATES = table({VCEK: LEAF, ASK: ASK_DER, ARK: ARK_DER})
# The key of a cloud is certified for a year only.
VLEK_TIME = sum(VendorCertificate((SNP / "milan_v3_vlek.leaf.der").read_bytes()).valid) // 2


def snp(certificates: bytes = CERTIFICATES, **options: int) -> FakeTsm:
    return FakeTsm("sev_guest", recorded({BOUND: (REPORT, certificates)}), **options)


class Pauses(list[float]):
    """How long the attester waited each time; nobody really waits."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def report(fake: FakeTsm, pauses: Pauses | None = None, **options: int) -> tsm.TsmReport:
    """One report; whatever happens, nothing stays behind."""
    machine = FakeMachine(fake)
    try:
        return tsm.tsm_report(BOUND, system=machine, pause=Pauses() if pauses is None else pauses, **options)
    finally:
        assert not fake.requests
        assert machine.descriptors == 0


class TestEvidence:
    def test_snp_with_the_certificates_of_its_host(self) -> None:
        attester = ConfigfsAttester(system=FakeMachine(snp()))
        evidence = attester.evidence(BOUND)
        assert (attester.tee, evidence.tee, evidence.quote) == ("snp", "snp", REPORT)
        found = parse_endorsements(evidence.endorsements).certificates
        assert [each.der for each in found] == [LEAF, ASK_DER, ARK_DER]

    @pytest.mark.parametrize(
        ("name", "product", "kind", "now"),
        [
            ("milan_v2", "Milan", VCEK, 1_750_000_000),
            ("genoa_v3", "Genoa", VCEK, 1_750_000_000),
            ("milan_v3_vlek", "Milan", VLEK, VLEK_TIME),
        ],
    )
    def test_real_snp_evidence_verifies_with_nothing_else(self, name: str, product: str, kind: UUID, now: int) -> None:
        real = (SNP / f"{name}.report.bin").read_bytes()
        bound = real[0x50:0x90]
        issuer = AMD_INTERMEDIATES[product][kind == VLEK].der
        certificates = table(
            {ARK: VENDORS.amd[product].der, kind: (SNP / f"{name}.leaf.der").read_bytes(), ASK: issuer}
        )
        fake = FakeTsm("sev_guest", recorded({bound: (real, certificates)}))
        claims = verify(ConfigfsAttester(system=FakeMachine(fake)).evidence(bound), now=now)
        assert (claims.tee, claims.product, claims.report_data) == ("snp", product, bound)

    def test_snp_from_a_host_without_certificates(self) -> None:
        evidence = ConfigfsAttester(system=FakeMachine(snp(b""))).evidence(BOUND)
        assert evidence.endorsements == b""

    @pytest.mark.parametrize("size", [0, 8000, 128 * 1024])
    def test_tdx_loses_the_zeros_that_the_platform_appends(self, size: int, vector: Callable) -> None:
        real = vector("v4_up_to_date")
        quote = parse_quote(real.evidence.quote).raw
        bound = quote[48 + 520 : 48 + 584]
        fake = FakeTsm("tdx_guest", recorded({bound: (quote.ljust(size, b"\0"), b"")}))
        attester = ConfigfsAttester(system=FakeMachine(fake))
        evidence = attester.evidence(bound)
        assert (attester.tee, evidence.tee, evidence.quote, evidence.endorsements) == ("tdx", "tdx", quote, b"")
        claims = verify(dataclasses.replace(evidence, endorsements=real.evidence.endorsements), now=real.now)
        assert claims.report_data == bound

    def test_real_tdx_evidence_as_google_s_cloud_hands_it_out(self) -> None:
        vectors = SNP.parent / "dcap-tdx"
        padded = (vectors / "tdx_v4_gcp_cos113.quote.bin").read_bytes()
        assert len(padded) == 8000
        bound = padded[48 + 520 : 48 + 584]
        attester = ConfigfsAttester(system=FakeMachine(FakeTsm("tdx_guest", recorded({bound: (padded, b"")}))))
        evidence = attester.evidence(bound)
        assert padded.startswith(evidence.quote) and len(evidence.quote) < 8000
        collateral = (vectors / "tdx_v4_gcp_cos113.collateral.json").read_bytes()
        now = json.loads((vectors / "cases.json").read_text())["tdx_v4_gcp_cos113"]["now"]
        claims = verify(dataclasses.replace(evidence, endorsements=collateral), now=now)
        assert claims.report_data == bound

    def test_each_request_gets_its_own_report(self, vendor: SimulatedVendor, registers: dict[str, bytes]) -> None:
        fake = FakeTsm("tdx_guest", lambda inblob, _: (vendor.quote(registers, inblob).quote, b""))
        attester = ConfigfsAttester(system=FakeMachine(fake))
        assert attester.evidence(b"1" * 64).quote != attester.evidence(b"2" * 64).quote
        assert fake.answered == 2

    def test_a_report_over_other_data_is_refused(self) -> None:
        fake = FakeTsm("sev_guest", lambda inblob, level: (REPORT, b""))
        with pytest.raises(EnclaveError, match="over other report data than was written"):
            ConfigfsAttester(system=FakeMachine(fake)).evidence(b"x" * 64)

    @pytest.mark.parametrize("outblob", [REPORT[:-1], REPORT + b"\0", BOUND])
    def test_what_is_no_snp_report_is_refused(self, outblob: bytes) -> None:
        fake = FakeTsm("sev_guest", recorded({BOUND: (outblob, b"")}))
        with pytest.raises(FormatError, match=r"SNP report: \d+ bytes, wanted 1184"):
            ConfigfsAttester(system=FakeMachine(fake)).evidence(BOUND)

    def test_what_is_no_quote_is_refused(self) -> None:
        fake = FakeTsm("tdx_guest", recorded({BOUND: (REPORT, b"")}))
        with pytest.raises(FormatError, match="quote"):
            ConfigfsAttester(system=FakeMachine(fake)).evidence(BOUND)

    def test_a_hostile_certificate_table_is_refused(self) -> None:
        with pytest.raises(FormatError, match="certificate table"):
            ConfigfsAttester(system=FakeMachine(snp(CERTIFICATES[:-1]))).evidence(BOUND)

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from(["sev_guest", "tdx_guest"]),
        st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(REPORT.__add__), st.just(REPORT)),
        st.one_of(st.binary(max_size=200), st.integers(0, len(CERTIFICATES)).map(lambda size: CERTIFICATES[:size])),
    )
    def test_whatever_a_host_answers(self, provider: str, outblob: bytes, auxblob: bytes) -> None:
        fake = FakeTsm(provider, recorded({BOUND: (outblob, auxblob)}))
        machine = FakeMachine(fake)
        with suppress(StrongroomError):
            ConfigfsAttester(system=machine).evidence(BOUND)
        assert not fake.requests
        assert machine.descriptors == 0

    @pytest.mark.parametrize("size", [0, 32, 63, 65])
    def test_report_data_has_64_bytes(self, size: int) -> None:
        with pytest.raises(UsageError, match=f"report data: {size} bytes, wanted 64"):
            ConfigfsAttester(system=FakeMachine(snp())).evidence(bytes(size))

    def test_arm_is_named_and_refused(self) -> None:
        fake = FakeTsm("arm_cca_guest", recorded({}))
        with pytest.raises(
            UnsupportedPlatformError, match="got provider 'arm_cca_guest', wanted sev_guest or tdx_guest"
        ):
            ConfigfsAttester(system=FakeMachine(fake))
        with pytest.raises(UnsupportedPlatformError, match="arm_cca_guest"):
            report(fake)


class TestWrites:
    def test_privlevel_is_left_alone_where_zero_is_allowed(self) -> None:
        fake = snp()
        fake.fail("privlevel", errno.EINVAL)
        assert report(fake).outblob == REPORT

    @pytest.mark.parametrize(("floor", "wanted", "level"), [(2, None, 2), (0, 0, 0), (0, 3, 3), (1, 2, 2)])
    def test_the_privlevel_that_is_written(self, floor: int, wanted: int | None, level: int) -> None:
        seen = []
        fake = FakeTsm("sev_guest", lambda _, given: (seen.append(given), (REPORT, b""))[1], privlevel_floor=floor)
        report(fake, privlevel=wanted)  # type: ignore[arg-type]
        assert seen == [level]

    def test_a_privlevel_below_the_floor_is_refused_before_it_is_written(self) -> None:
        with pytest.raises(UsageError, match="privlevel: got 1, wanted at least 2"):
            report(snp(privlevel_floor=2), privlevel=1)

    @pytest.mark.parametrize("level", [-1, 4])
    def test_a_privlevel_that_does_not_exist(self, level: int) -> None:
        with pytest.raises(UsageError, match=f"privlevel: got {level}, wanted 0 to 3"):
            report(snp(), privlevel=level)

    def test_tdx_has_no_privlevel(self) -> None:
        with pytest.raises(UsageError, match="tdx_guest has no such levels"):
            report(FakeTsm("tdx_guest", recorded({})), privlevel=0)

    def test_a_write_that_closing_lost(self) -> None:
        fake = snp()
        fake.fail("inblob", errno.EBUSY)
        with pytest.raises(EnclaveError, match="0 of 1 writes took effect"):
            report(fake)
        assert fake.answered == 0

    def test_a_write_that_closing_lost_where_an_older_one_would_give_a_report(self) -> None:
        fake = snp()
        fake.before("outblob", lambda: fake.write(next(iter(fake.requests)), BOUND))
        fake.before("inblob", lambda: None, lambda: fake.fail("inblob", errno.EBUSY))
        with pytest.raises(EnclaveError, match="1 of 2 writes took effect"):
            report(fake, privlevel=1)


class TestConflicts:
    def test_another_writer_once(self) -> None:
        fake = snp()
        fake.before("outblob", lambda: fake.write(next(iter(fake.requests)), BOUND))
        assert report(fake).outblob == REPORT
        assert fake.answered == 2

    def test_another_writer_before_the_report_is_made(self) -> None:
        fake = snp()
        fake.before("generation", lambda: None, lambda: fake.write(next(iter(fake.requests)), BOUND))
        assert report(fake).outblob == REPORT
        assert fake.answered == 1

    def test_another_writer_again_and_again(self) -> None:
        fake = snp()
        fake.before("outblob", *[lambda: fake.write(next(iter(fake.requests)), BOUND)] * 3)
        with pytest.raises(LockedError, match="another program wrote to our request 3 times"):
            report(fake)

    def test_another_writer_between_the_report_and_its_certificates(self) -> None:
        fake = snp()
        fake.before("auxblob", lambda: fake.write(next(iter(fake.requests)), BOUND))
        assert report(fake).auxblob == CERTIFICATES
        assert fake.answered == 3

    def test_the_directory_of_a_killed_process_disturbs_nobody(self) -> None:
        fake = snp()
        fake.mkdir(f"strongroom-{os.getpid()}-0000000000000000")
        machine = FakeMachine(fake)
        assert tsm.tsm_report(BOUND, system=machine).outblob == REPORT
        assert list(fake.requests) == [f"strongroom-{os.getpid()}-0000000000000000"]

    def test_names_tell_whose_they_are(self) -> None:
        fake = snp()
        seen: list[str] = []
        fake.before("provider", lambda: seen.extend(fake.requests), lambda: seen.extend(fake.requests))
        report(fake)
        report(fake)
        assert len(set(seen)) == 2
        assert all(name.startswith(f"strongroom-{os.getpid()}-") for name in seen)


class TestFailures:
    def test_a_busy_platform_is_asked_again(self) -> None:
        fake, pauses = snp(), Pauses()
        fake.fail("outblob", errno.EBUSY, errno.EINTR, errno.EAGAIN)
        fake.fail("auxblob", errno.EBUSY)
        assert report(fake, pauses).outblob == REPORT
        assert pauses == [1.0] * 4

    def test_a_platform_that_stays_busy_is_given_up(self) -> None:
        fake, pauses = snp(), Pauses()
        fake.fail("outblob", *[errno.EBUSY] * 100)
        with pytest.raises(EnclaveError, match=r"making the report failed: .*\(EBUSY\)") as info:
            report(fake, pauses)
        assert len(pauses) == 30
        assert "still at work" in str(info.value.hint)

    @pytest.mark.parametrize(
        ("number", "hint"),
        [
            (errno.ETIMEDOUT, "quoting service"),
            (errno.EIO, "kernel's log"),
            (errno.ENXIO, "provider is gone"),
            (errno.EINVAL, "privilege level"),
            (errno.EFBIG, "larger than this kernel allows"),
            (errno.ENOTTY, "message key is disabled"),
            (errno.ENODEV, "None"),
        ],
    )
    @pytest.mark.parametrize("name", ["outblob", "auxblob", "privlevel_floor", "generation", "provider"])
    def test_every_error_is_one_of_ours_and_leaves_nothing_behind(self, name: str, number: int, hint: str) -> None:
        fake, pauses = snp(), Pauses()
        fake.fail(name, number)
        with pytest.raises(EnclaveError, match=errno.errorcode[number]) as info:
            report(fake, pauses)
        assert hint in str(info.value.hint)
        assert not pauses

    @pytest.mark.parametrize(
        ("number", "words"),
        [
            (errno.ENOENT, "this kernel has none"),
            (errno.ENXIO, "nobody makes reports"),
            (errno.EACCES, "not for this user"),
            (errno.EPERM, "not for this user"),
            (errno.EROFS, "read-only"),
            (errno.ENOMEM, "ENOMEM"),
        ],
    )
    def test_why_there_is_no_request(self, number: int, words: str) -> None:
        fake = snp()
        fake.fail("mkdir", number)
        with pytest.raises(UnsupportedPlatformError, match=words):
            report(fake)

    @pytest.mark.parametrize("parts", [[], [FakeTsm(None, recorded({}))]])
    def test_a_machine_without_a_tee(self, parts: list[FakeTsm]) -> None:
        machine = FakeMachine(*parts)
        assert tsm.tsm_provider(machine) is None
        with pytest.raises(UnsupportedPlatformError, match="nobody makes reports on this machine") as info:
            ConfigfsAttester(system=machine)
        assert "Linux 6.7" in str(info.value.hint)
        with pytest.raises(UnsupportedPlatformError, match="configfs-tsm: "):
            tsm.tsm_report(BOUND, system=machine)

    def test_a_provider_that_goes_away_meanwhile(self) -> None:
        fake = snp()
        fake.before("outblob", lambda: setattr(fake, "provider", None))
        with pytest.raises(EnclaveError, match="ENXIO"):
            report(fake)

    def test_a_directory_that_does_not_go_is_no_reason_to_withhold_the_report(self) -> None:
        fake = snp()
        fake.fail("rmdir", errno.EBUSY)
        assert tsm.tsm_report(BOUND, system=FakeMachine(fake)).outblob == REPORT

    def test_an_interrupted_program_removes_its_request(self) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        fake = snp()
        fake.before("outblob", interrupt)
        with pytest.raises(KeyboardInterrupt):
            report(fake)

    @pytest.mark.parametrize("answer", [b"", b"x" * (256 * 1024 + 1)])
    def test_an_answer_that_is_none(self, answer: bytes) -> None:
        with pytest.raises(EnclaveError, match=r"empty report|more than 262144 bytes"):
            report(FakeTsm("sev_guest", recorded({BOUND: (answer, b"")})))

    def test_repr_tells_the_provider_only(self) -> None:
        assert repr(ConfigfsAttester(system=FakeMachine(snp()))) == "ConfigfsAttester(sev_guest)"
        assert "outblob" not in repr(report(snp()))


class TestSystemCalls:
    """The two helpers on real files, where `os` itself answers."""

    def test_reading_stops_at_the_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x" * 100)
        assert read_whole(os, str(path), 100) == b"x" * 100
        with pytest.raises(EnclaveError, match="more than 99 bytes"):
            read_whole(os, str(path), 99)

    def test_writing_makes_no_file_and_cuts_none(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        with pytest.raises(FileNotFoundError):
            write_once(os, str(path), b"x")
        path.write_bytes(b"abc")
        write_once(os, str(path), b"x")
        assert path.read_bytes() == b"xbc"

    def test_a_system_that_takes_less_than_it_was_given(self) -> None:
        class Short(FakeMachine):
            def write(self, fd: int, data: bytes, /) -> int:
                return super().write(fd, data[:-1])

        with pytest.raises(EnclaveError, match="inblob: 63 bytes written, wanted 64 at once"):
            tsm.tsm_report(BOUND, system=Short(snp()))


class TestRtmrs:
    def test_extending_as_the_module_does(self) -> None:
        fake = FakeRtmrs()
        machine = FakeMachine(fake)
        assert read_rtmr(3, system=machine) == bytes(48)
        first = extend_rtmr(3, b"\1" * 48, system=machine)
        assert first == digest(bytes(48), b"\1" * 48, algorithm="sha384") == read_rtmr(3, system=machine)
        assert fake.values[:3] == [bytes(48)] * 3
        assert machine.descriptors == 0

    def test_somebody_else_extends_it_too(self) -> None:
        fake = FakeRtmrs()
        fake.before("rtmr3:sha384", lambda: None, lambda: fake.extend(3, b"\2" * 48))
        with pytest.raises(LockedError, match="RTMR3: extended by another program"):
            extend_rtmr(3, b"\1" * 48, system=FakeMachine(fake))

    def test_what_cannot_be(self) -> None:
        machine = FakeMachine(FakeRtmrs())
        with pytest.raises(UsageError, match="a digest of 32 bytes, wanted 48"):
            extend_rtmr(3, bytes(32), system=machine)
        for index in (-1, 4):
            with pytest.raises(UsageError, match=f"RTMR: got {index}, wanted 0 to 3"):
                read_rtmr(index, system=machine)

    def test_elsewhere(self) -> None:
        with pytest.raises(UnsupportedPlatformError, match="reading RTMR3 failed"):
            extend_rtmr(3, bytes(48), system=FakeMachine())
        fake = FakeRtmrs()
        fake.fail("rtmr2:sha384", errno.EACCES, errno.EIO)
        with pytest.raises(UnsupportedPlatformError, match="not for this user"):
            read_rtmr(2, system=FakeMachine(fake))
        with pytest.raises(EnclaveError, match=os.strerror(errno.EIO).lower()):
            read_rtmr(2, system=FakeMachine(fake))
