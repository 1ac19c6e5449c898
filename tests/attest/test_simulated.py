from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import dcap_qvl
import pytest

from strongroom.attest.attester import Attester
from strongroom.attest.binding import Kind, canonical, report_data
from strongroom.attest.parse.dcap import parse_quote
from strongroom.attest.tee import simulated
from strongroom.attest.tee.simulated import BANNER, SimulatedAttester, SimulatedVendor
from strongroom.attest.verify import verify
from strongroom.errors import FormatError, UsageError

NOW = 1_750_000_000
DAY = 24 * 3600


def test_a_vendor_is_made_once(tmp_path, registers):
    vendor = SimulatedVendor.open(tmp_path / "deep" / "vendor", now=NOW)
    again = SimulatedVendor.open(tmp_path / "deep" / "vendor", now=NOW)
    assert again.root_digest == vendor.root_digest
    assert again.quote(registers, bytes(64)).endorsements == vendor.quote(registers, bytes(64)).endorsements
    other = SimulatedVendor.open(tmp_path / "other", now=NOW)
    assert other.root_digest != vendor.root_digest


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_its_files_are_the_owner_s_alone(tmp_path):
    SimulatedVendor.open(tmp_path / "vendor", now=NOW)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "vendor").iterdir()}
    assert modes == {"root.pem": 0o600, "chain.json": 0o600}
    assert (tmp_path / "vendor").stat().st_mode & 0o777 == 0o700


def test_the_chain_is_renewed_before_it_expires_and_the_root_stays(tmp_path, registers):
    first = SimulatedVendor.open(tmp_path, now=NOW)
    chain = (tmp_path / "chain.json").read_bytes()
    hardware = verify(first.quote(registers, bytes(64)), now=NOW).hardware_id

    SimulatedVendor.open(tmp_path, now=NOW + 60 * DAY)
    assert (tmp_path / "chain.json").read_bytes() == chain

    for later in (NOW + 60 * DAY + 1, NOW + 9000 * DAY, NOW - 9000 * DAY):
        renewed = SimulatedVendor.open(tmp_path, now=later)
        assert renewed.root_digest == first.root_digest
        claims = verify(renewed.quote(registers, bytes(64)), now=later + 30 * DAY)
        assert (claims.vendor_root, claims.hardware_id) == (first.root_digest, hardware)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"version": 2}', b'{"version": 1, "root": 1}']
)
def test_a_chain_that_cannot_be_read_is_made_anew(tmp_path, registers, content):
    first = SimulatedVendor.open(tmp_path, now=NOW)
    (tmp_path / "chain.json").write_bytes(content)
    again = SimulatedVendor.open(tmp_path, now=NOW)
    assert again.root_digest == first.root_digest
    verify(again.quote(registers, bytes(64)), now=NOW)


def test_a_chain_under_another_root_is_made_anew(tmp_path, registers):
    first, second = (SimulatedVendor.open(tmp_path / name, now=NOW) for name in "ab")
    (tmp_path / "a" / "root.pem").write_bytes((tmp_path / "b" / "root.pem").read_bytes())
    shared = SimulatedVendor.open(tmp_path / "a", now=NOW)
    assert shared.root_digest == second.root_digest != first.root_digest
    assert verify(shared.quote(registers, bytes(64)), now=NOW).vendor_root == second.root_digest


def test_a_root_that_is_not_ours_is_left_alone(tmp_path):
    for name in "ab":
        SimulatedVendor.open(tmp_path / name, now=NOW)
    path = tmp_path / "a" / "root.pem"
    key, certificate = (
        (tmp_path / name / "root.pem").read_text().partition("-----BEGIN CERTIFICATE-----")[::2] for name in "ab"
    )
    for content in ("", "junk", key[0], key[0] + "-----BEGIN CERTIFICATE-----" + certificate[1]):
        path.write_text(content)
        with pytest.raises(FormatError, match=r"root\.pem: ") as caught:
            SimulatedVendor.open(tmp_path / "a", now=NOW)
        assert caught.value.hint.startswith("move it away")
        assert path.read_text() == content


def _open(directory: Path) -> str:
    return SimulatedVendor.open(directory, now=NOW).root_digest


def test_processes_that_open_at_once_agree_on_the_root(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        roots = pool.map(_open, [tmp_path / "vendor"] * 8, chunksize=1)
    assert len(set(roots)) == 1
    assert sorted(path.name for path in (tmp_path / "vendor").iterdir()) == ["chain.json", "root.pem"]


def test_a_lost_race_takes_the_winner_s_root(tmp_path, monkeypatch):
    winner = SimulatedVendor.open(tmp_path / "winner", now=NOW)
    real = simulated._create

    def slower(path: Path, content: bytes) -> None:
        path.write_bytes((tmp_path / "winner" / "root.pem").read_bytes())
        real(path, content)

    monkeypatch.setattr(simulated, "_create", slower)
    assert SimulatedVendor.open(tmp_path / "loser", now=NOW).root_digest == winner.root_digest


def test_an_attester_makes_evidence_for_its_registers(vendor, registers):
    attester: Attester = SimulatedAttester(vendor, registers)
    assert attester.tee == "simulated"
    bound = report_data(Kind.SESSION, fresh=b"f" * 32, binder=b"b" * 32, claims=canonical({"role": "worker"}))
    claims = verify(attester.evidence(bound), now=NOW)
    assert (claims.tee, claims.report_data) == ("simulated", bound)
    assert {name: claims.registers[name] for name in registers} == {n: v.hex() for n, v in registers.items()}


def test_each_quote_is_a_quote_of_its_own(vendor, registers):
    evidence = vendor.quote(registers, b"1" * 64)
    other = vendor.quote(registers | {"rtmr3": b"3" * 48}, b"2" * 64)
    assert evidence.endorsements == other.endorsements
    assert parse_quote(other.quote).report.registers["rtmr3"] == b"3" * 48
    assert verify(evidence, now=NOW).measurement != verify(other, now=NOW).measurement


@pytest.mark.parametrize("change", [{"mrtd": b""}, {"mrtd": bytes(49)}, {"rtmr4": bytes(48)}])
def test_registers_of_another_shape_are_refused(vendor, registers, change):
    with pytest.raises(UsageError, match="registers: wanted exactly mrtd, rtmr0, rtmr1, rtmr2, rtmr3, 48 bytes each"):
        vendor.quote(registers | change, bytes(64))
    with pytest.raises(UsageError, match="report data: 63 bytes, wanted 64"):
        vendor.quote(registers, bytes(63))


def test_the_platform_s_certificate_says_what_intel_s_says(vendor, registers):
    quote = dcap_qvl.Quote.parse(vendor.quote(registers, bytes(64)).quote)
    pck = quote.pck_extension()
    assert (pck.fmspc.hex(), pck.pce_svn, pck.cpu_svn, pck.pce_id) == ("000053494d00", 1, b"\1" * 16, b"\0\0")
    assert len(pck.ppid) == len(pck.platform_instance_id) == 16


def test_it_says_that_it_protects_nothing(vendor):
    for text in (BANNER, simulated.__doc__.replace("\n", " ")):
        assert "protects nothing against the" in text
    assert "PRIVATE KEY" not in repr(vendor) + repr(vendor._chain)
    subject = vendor._chain.endorsements
    assert json.loads(subject)["pck_crl_issuer_chain"].count("BEGIN CERTIFICATE") == 2


def test_intel_s_root_refuses_it_and_its_root_refuses_intel_s(vendor, registers, vector):
    evidence = vendor.quote(registers, bytes(64))
    collateral = dcap_qvl.QuoteCollateralV3.from_json(evidence.endorsements.decode())
    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify(evidence.quote, collateral, NOW)
    real = vector("v4_up_to_date")
    mixed = replace(evidence, endorsements=real.evidence.endorsements)
    with pytest.raises(Exception, match="simulated evidence: got Intel's vendor root"):
        verify(mixed, now=real.now)
