"""`strongroom attest`: what a person sees, and with which status it ends."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import ColorSystem

from strongroom.attest.binding import bound_data
from strongroom.attest.claims import REGISTERS, Claims
from strongroom.attest.files import read_evidence
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.attest.words import WEAKNESSES
from strongroom.cas.policy.version import parse_reference
from strongroom.cli import output
from strongroom.cli.attest import appraise as attest_appraise
from strongroom.cli.attest import words as attest_words
from strongroom.cli.attest.draft import REASONS, reference_table
from strongroom.cli.main import main

VECTORS = Path(__file__).parents[1] / "vectors"
SWTPM = VECTORS / "tpm2" / "swtpm_own"
NOW = 1_750_000_000

# One accepted sample of each kind: its file, the files that belong to it, and the moment to verify it at.
GOOD = {
    "sgx": (
        "dcap-sgx/sgx_v3_phala.quote.bin",
        ["--endorsements", "dcap-sgx/sgx_v3_phala.collateral.json"],
        "2025-07-04",
    ),
    "tdx": (
        "dcap-tdx/tdx_v4_gcp_cos113.quote.bin",
        ["--endorsements", "dcap-tdx/tdx_v4_gcp_cos113.collateral.json"],
        "2025-07-22",
    ),
    "snp": ("sev-snp/milan_v2.report.bin", ["--endorsements", "sev-snp/milan_v2.leaf.der"], "2025-06-01"),
    "nitro": ("aws-nitro/nitro.b64", [], "2024-09-07T14:38"),
    "nvidia": ("nvidia-gpu/hopper_report.hex", ["--endorsements", "nvidia-gpu/hopper_chain.pem"], "2025-06-01"),
    "azure-snp": ("azure-vtpm/az-snp-vtpm_evidence-v1.json", [], "2025-06-01"),
    "azure-tdx": ("azure-vtpm/az-tdx-vtpm_evidence-v1.json", [], "2025-06-01"),
    "tpm": (
        "tpm2/swtpm_own/ecc256_quote.msg",
        [
            *("--signature", "tpm2/swtpm_own/ecc256_quote.sig"),
            *("--tpm-key", "tpm2/swtpm_own/ecc256_ak.pem"),
            *("--pcrs", "tpm2/swtpm_own/meta.json"),
        ],
        "2025-06-01",
    ),
}
# In `nonce` and in `user_data` alike.
NITRO_NONCE = "01" * 1024


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(VECTORS)


@pytest.fixture
def run(capsys):
    """Runs `strongroom attest`, and gives its status, result and notes."""

    def call(*words: object) -> tuple[int, str, str]:
        status = main(["attest", *map(str, words)])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return status, told.out, told.err

    return call


def judged(draft: str) -> str:
    """A draft whose author has accepted every flaw that it names."""
    return re.sub(r"^# (?=(?:weaknesses_allowed|advisories_allowed|tcb_statuses) = )", "", draft, flags=re.MULTILINE)


def arguments(kind: str, *, trust: bool = True) -> list[str]:
    file, more, at = GOOD[kind]
    return [file, *more, *(["--at", at] if trust else [])]


@pytest.mark.parametrize("kind", GOOD)
def test_show_says_that_nothing_is_verified(run, kind):
    status, out, err = run("show", *arguments(kind, trust=False))
    assert status == 0
    assert "not verified" in err
    assert out.startswith(f"{kind} evidence: ")
    status, out, _ = run("show", "--json", *arguments(kind, trust=False))
    told = json.loads(out)
    assert (status, told["verified"], told["tee"]) == (0, False, kind)
    assert all(section["fields"] for section in told["sections"])


def test_show_shortens_bytes_unless_it_is_told_not_to(run):
    measurement = (VECTORS / "sev-snp/milan_v2.report.bin").read_bytes()[0x90:0xC0].hex()
    _, out, _ = run("show", "sev-snp/milan_v2.report.bin")
    assert f"{measurement[:16]}... (48 bytes)" in out
    assert measurement not in out
    _, out, _ = run("show", "--full", "sev-snp/milan_v2.report.bin")
    assert measurement in out
    _, out, _ = run("show", "--full", "aws-nitro/nitro.b64")
    assert NITRO_NONCE in out


@pytest.mark.parametrize("kind", GOOD)
def test_verify_prints_the_steps_and_the_claims(run, kind):
    status, out, err = run("verify", *arguments(kind))
    assert (status, "not appraised" in err) == (0, True)
    assert re.search(r"\nheld \(every step that this evidence allows, at 20\d\d-", out)
    assert re.search(r"\n  measurement  [0-9a-f]{64,128}\n", out)
    status, out, _ = run("verify", "--json", *arguments(kind))
    told = json.loads(out)
    assert (status, told["verified"], told["claims"]["tee"]) == (0, True, kind)
    assert told["steps"]


@pytest.mark.parametrize("kind", [kind for kind in GOOD if kind != "azure-tdx"])
def test_a_drafted_policy_accepts_what_it_was_drafted_from_and_nothing_else(run, kind, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments(kind))
    parse_reference(draft)
    policy = tmp_path / "policy.toml"
    policy.write_text(judged(draft))
    status, out, err = run("appraise", "--policy", policy, "--any-report-data", *arguments(kind))
    assert (status, "the policy wants this " in out) == (0, True)
    assert "report data not compared" in err
    status, _, err = run("appraise", "--policy", policy, *arguments(kind))
    assert (status, "report data: nothing to compare with" in err) == (34, True)
    status, _, err = run("appraise", "--policy", policy, "--nonce", "another", *arguments(kind))
    assert (status, "report data: got" in err) == (34, True)


def test_an_azure_td_without_collateral_is_refused_though_the_draft_lists_its_weakness(run, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("azure-tdx"))
    assert "# sept-ve: its host can take pages away unseen" in draft
    assert '\n# weaknesses_allowed = ["sept-ve"]\n' in draft
    assert "verify with Intel's collateral" in draft
    policy = tmp_path / "policy.toml"
    words = ("--policy", policy, "--nonce", "challenge")
    policy.write_text(draft)
    status, _, err = run("appraise", *words, *arguments("azure-tdx"))
    assert (status, "sept-ve" in err.splitlines()[0]) == (30, True), err
    policy.write_text(judged(draft))
    status, _, err = run("appraise", *words, *arguments("azure-tdx"))
    assert (status, "tcb status" in err) == (36, True)


@pytest.mark.parametrize(
    ("kind", "nonce"),
    [
        ("azure-snp", "challenge"),
        ("tpm", "hex:" + json.loads((SWTPM / "meta.json").read_text())["nonce"]),
        ("nitro", "hex:" + NITRO_NONCE),
    ],
)
def test_a_nonce_is_compared_with_what_the_evidence_holds(run, kind, nonce, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments(kind))
    (tmp_path / "policy.toml").write_text(draft)
    status, out, _ = run("appraise", "--json", "--policy", tmp_path / "policy.toml", "--nonce", nonce, *arguments(kind))
    told = json.loads(out)
    assert (status, told["accepted"], told["bound"]) == (0, True, True)


def test_a_nitro_enclave_may_hold_the_nonce_in_the_field_of_that_name():
    claims = Claims("nitro", "00", {}, b"data", False, "", attributes={"nonce": b"challenge".hex()})
    assert attest_appraise._held(claims, b"challenge") == b"data"
    assert attest_appraise._held(claims, b"another") == b"another"


@pytest.fixture
def simulated(tmp_path):
    """Simulated evidence over report data of 64 bytes, as a file."""
    vendor = SimulatedVendor.open(tmp_path / "vendor", now=NOW)
    data = bytes(range(64))
    evidence = vendor.quote({name: bytes([i]) * 48 for i, name in enumerate(REGISTERS)}, data)
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(evidence.to_wire()))
    return path, data, vendor


def test_every_reason_is_told_and_the_first_decides(run, simulated, tmp_path):
    path, data, _ = simulated
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[reference]\ntees = ["tdx"]\nmeasurements = ["{"00" * 48}"]\n')
    words = ("appraise", path, "--policy", policy, "--report-data", data.hex(), "--at", NOW)
    status, out, err = run(*words)
    assert status == 33
    assert "error: simulated enclave: got vendor root" in err
    assert "also refused: tee: got simulated, wanted tdx" in err
    assert "also refused: measurement: got" in err
    assert out.count("refused") == 3
    status, out, _ = run(*words, "--json")
    told = json.loads(out)
    assert (status, told["exit_status"], told["code"], told["accepted"]) == (33, 33, "simulated-enclave", False)
    assert [each["name"] for each in told["steps"] if not each["holds"]] == ["simulated vendor", "tee", "measurement"]


def test_devices_are_appraised_with_their_enclave(run, simulated, tmp_path):
    path, _, _ = simulated
    report = (VECTORS / "nvidia-gpu/hopper_report.hex").read_bytes()
    gpu = read_evidence(report, [(VECTORS / "nvidia-gpu/hopper_chain.pem").read_bytes()]).evidence
    wire = json.loads(path.read_text())
    path.write_text(json.dumps(wire | {"devices": [gpu.to_wire()]}))
    _, draft, _ = run("appraise", path, "--draft-policy", "--at", NOW)
    assert parse_reference(draft).devices is not None
    policy = tmp_path / "policy.toml"
    policy.write_text(draft)
    status, out, _ = run("appraise", path, "--policy", policy, "--any-report-data", "--at", NOW)
    assert (status, "device 0: measurement" in out) == (0, True)
    policy.write_text(draft.replace(parse_reference(draft).devices.measurements[0], "00" * 48))
    status, _, err = run("appraise", path, "--policy", policy, "--any-report-data", "--at", NOW)
    assert (status, "measurement: got" in err) == (35, True)


def test_simulated_evidence_is_accepted_under_its_own_root_only(run, simulated, tmp_path):
    path, data, vendor = simulated
    _, draft, _ = run("appraise", path, "--draft-policy", "--at", NOW)
    assert f'allow_simulated = "{vendor.root_digest}"' in draft
    policy = tmp_path / "policy.toml"
    words = ("appraise", path, "--policy", policy, "--report-data", data.hex(), "--at", NOW)
    policy.write_text(draft)
    assert run(*words)[0] == 0
    policy.write_text(draft.replace(vendor.root_digest, "sha256:" + "00" * 32))
    assert run(*words)[0] == 33


@pytest.mark.parametrize(
    ("status", "words", "says"),
    [
        (2, ["verify", "no-such-file"], "no-such-file: no such file"),
        (2, ["verify", "aws-nitro/nitro.b64", "--tpm-key", "tpm2/swtpm_own/ecc256_ak.pem"], "not a TPM's"),
        (2, ["verify", "aws-nitro/nitro.b64", "--root", "nvidia-gpu/hopper_chain.pem"], "wanted one"),
        (10, ["show", "aws-nitro/SOURCE.md"], "of no form that is known"),
        (10, ["show", "nvidia-gpu/hopper_chain.pem"], "PEM or DER"),
        (10, ["verify", "dcap-sgx/sgx_v3_phala.quote.bin"], "endorsements: none, wanted Intel's collateral"),
        (10, ["verify", "tpm2/swtpm_own/ecc256_quote.msg"], "without signature, key, registers"),
        (31, ["verify", "tpm2/tpm_evidence_coco.json"], "not enrolled"),
        (
            31,
            ["verify", "aws-nitro/nitro.b64", "--at", "2024-09-07T14:38", "--root", "tpm2/swtpm_own/ek_root.pem"],
            "not",
        ),
        (37, ["verify", "aws-nitro/nitro.b64", "--at", "2025-01-01"], "not valid at 2025-01-01"),
        (31, ["verify", "sev-snp/milan_v2.report.bin", "--endorsements", "sev-snp/forged.leaf.der"], "not signed by"),
    ],
)
def test_a_refusal_has_its_class_its_reason_and_what_it_means(run, status, words, says):
    got, _, err = run(*words)
    assert (got, says in err) == (status, True), err
    assert len(re.findall("strongroom: error: ", err)) == 1
    if status in (31, 37):
        assert re.search("hint: |refused: ", err)


@pytest.mark.parametrize("kind", ["tdx/v4_debug", "sev-snp/milan_v2_debug", "aws-nitro/nitro_debug"])
def test_debug_enclaves_are_refused_whatever_the_policy_says(run, kind, tmp_path):
    file, more = {
        "tdx/v4_debug": ("tdx/v4_debug.quote.bin", ["--endorsements", "tdx/v4_debug.collateral.json"]),
        "sev-snp/milan_v2_debug": (f"{kind}.report.bin", ["--endorsements", f"{kind}.leaf.der", "--at", "2025-06-01"]),
        "aws-nitro/nitro_debug": (f"{kind}.b64", ["--at", "2024-09-07T14:38:30"]),
    }[kind]
    status, draft, _ = run("appraise", file, *more, "--draft-policy")
    if status == 0:
        assert "DEBUG ENCLAVE" in draft
        (tmp_path / "policy.toml").write_text(draft)
        status, _, _ = run("appraise", file, *more, "--policy", tmp_path / "policy.toml", "--any-report-data")
    assert status == 32


def test_bad_arguments_are_usage(run, tmp_path, capsys):
    status, _, err = run("appraise", "aws-nitro/nitro.b64", "--policy", tmp_path / "x", "--nonce", "\udcff")
    assert (status, "no such file" in err) == (2, True)
    for words in (["--report-data", "00"], ["--report-data", "zz"], ["--nonce", "hex:zz"]):
        status, _, err = run("appraise", "aws-nitro/nitro.b64", "--policy", tmp_path / "x", *words)
        assert (status, "error: --" in err) == (2, True)
    for moment in ("yesterday", "9" * 16, "2025", "1969-01-01"):
        with pytest.raises(SystemExit):
            run("verify", "aws-nitro/nitro.b64", "--at", moment)
    with pytest.raises(SystemExit):
        run("appraise", "aws-nitro/nitro.b64")
    assert "--policy" in capsys.readouterr().err


def test_a_policy_may_be_whole_or_a_table(run, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("sgx"))
    head = f'[policy]\nname = "a/b"\nversion = 1\nowner = "sha256:{"00" * 32}"\nrole = "program"\n'
    for text, status in (
        (judged(draft), 0),
        (head + judged(draft), 0),
        (draft + "[more]\n", 11),
        ("\udcff", 11),
        ("x", 11),
    ):
        (tmp_path / "policy.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
        words = ("--policy", tmp_path / "policy.toml", "--any-report-data")
        assert run("appraise", *words, *arguments("sgx"))[0] == status


def test_evidence_comes_from_standard_input_too(run, monkeypatch):
    raw = (VECTORS / "aws-nitro/nitro.b64").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert run("verify", "-", "--at", "2024-09-07T14:38")[0] == 0


def test_endorsements_come_from_a_bundle_without_a_network(run, tmp_path):
    bundle = tmp_path / "endorsements.bundle"
    collateral = "dcap-tdx/tdx_v4_gcp_cos113.collateral.json"
    status, out, _ = run("endorsements", "bundle", "--add", collateral, "--out", bundle, "--json")
    assert status == 0
    assert "intel/tdx/tcb/00806F050000" in json.loads(out)["endorsements"]
    quote = "dcap-tdx/tdx_v4_gcp_cos113.quote.bin"
    assert run("verify", quote, "--bundle", bundle, "--at", "2025-07-22")[0] == 0
    assert run("verify", quote, "--bundle", bundle, "--at", "2027-01-01")[0] == 37
    status, _, err = run("verify", "dcap-sgx/sgx_v3_phala.quote.bin", "--bundle", bundle, "--at", "2025-07-04")
    assert (status, "neither in the bundle nor in the cache" in err) == (10, True)
    assert run("endorsements", "bundle", "--out", bundle)[0] == 2
    assert run("endorsements", "fetch", "aws-nitro/nitro.b64", "--out", bundle)[0] == 2


def test_a_bundle_of_files_alone_says_what_it_lacks(run, tmp_path):
    bundle = tmp_path / "endorsements.bundle"
    leaf = ("--add", "sev-snp/milan_v2.leaf.der")
    status, _, err = run("endorsements", "bundle", *leaf, "--out", bundle)
    assert (status, "amd/Milan/vcek/crl is missing: without it revocation is not checked" in err) == (0, True), err
    report = ("sev-snp/milan_v2.report.bin", "--bundle", bundle, "--at", "2025-07-04")
    status, out, _ = run("verify", *report)
    assert (status, "revocation: no list of AMD's came along" in out) == (0, True)
    status, out, _ = run("endorsements", "bundle", *leaf, "--add", "amd-kds/milan.crl.pem", "--out", bundle, "--json")
    assert (status, json.loads(out)["missing"]) == (0, {})
    status, out, _ = run("verify", *report)
    assert (status, "no list of AMD's" in out) == (0, False)


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_lines_that_fit(run, monkeypatch, width):
    monkeypatch.setattr(output.stdout, "_force_terminal", True)
    monkeypatch.setattr(output.stdout, "_width", width)
    monkeypatch.setattr(output.stdout, "_color_system", ColorSystem.STANDARD)
    _, out, _ = run("show", "dcap-tdx/tdx_v4_gcp_cos113.quote.bin")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert "\x1b[1m" in out
    # Only a word that is longer than a line sticks out: a measurement, which is for copying.
    assert all(len(line) <= width or max(map(len, line.split())) > width - 24 for line in plain.splitlines())
    # What stands beside it begins under the others' meanings, on a line of its own.
    meanings = [line.index("what a policy") for line in plain.splitlines() if "what a policy" in line]
    assert meanings == [line.index("for the guest") for line in plain.splitlines() if "for the guest" in line]


def test_what_evidence_says_never_reaches_the_terminal_as_a_command(run, monkeypatch):
    attest_words.table([("name", "\x1b[2J", "\x07 [bold]")])
    _, out, _ = run("show", "aws-nitro/nitro.b64")
    assert "\x1b" not in out


def test_what_did_not_happen_is_told_and_not_claimed(run):
    told = {kind: json.loads(run("verify", "--json", *arguments(kind))[1]) for kind in GOOD}
    assert not [each for kind in GOOD for each in told[kind]["steps"] if "revocation list" in each and kind == "snp"]
    assert any("revocation: no list of AMD's came along" in each for each in told["snp"]["not_checked"])
    assert any("revocation lists revoke no" in each for each in told["tdx"]["steps"])
    assert any("revocation of the platform's" in each for each in told["azure-tdx"]["not_checked"])
    assert not any("SNP" in each or "TCB" in each for each in told["azure-tdx"]["steps"])
    assert any("no event log" in each for each in told["tpm"]["not_checked"])
    assert all("(dcap" not in each and "`dcap" not in each for kind in GOOD for each in told[kind]["steps"])
    _, out, _ = run("verify", *arguments("azure-tdx"))
    assert out.index("not checked") < out.index("claims (")
    assert re.search(r"tcb status +not checked", out)


def test_report_data_that_is_not_compared_never_holds(run, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("sgx"))
    (tmp_path / "policy.toml").write_text(judged(draft))
    words = ("appraise", "--policy", tmp_path / "policy.toml", "--any-report-data", *arguments("sgx"))
    _, out, _ = run(*words)
    assert re.search(r"4\.  open +report data +[0-9a-f]+\.\.\., not compared\n", out)
    told = json.loads(run(*words, "--json")[1])
    (step,) = [each for each in told["steps"] if each["name"] == "report data"]
    assert (told["accepted"], told["bound"], step["holds"], step["wanted"]) == (True, False, None, None)


def test_report_data_is_told_so_that_a_difference_shows(run, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("nitro"))
    (tmp_path / "policy.toml").write_text(draft)
    words = ("appraise", "--policy", tmp_path / "policy.toml", "--nonce", "hex:" + "01" * 64, *arguments("nitro"))
    status, out, err = run(*words)
    (row,) = [line for line in out.splitlines() if "report data" in line]
    got, wanted = re.search("got (.+), wanted (.+)", row).groups()
    assert (status, got != wanted) == (34, True)
    assert "1024 bytes" in err
    (step,) = [each for each in json.loads(run(*words, "--json")[1])["steps"] if each["name"] == "report data"]
    assert (step["got"], step["wanted"]) == (NITRO_NONCE, "01" * 64)
    assert json.loads(run(*words, "--json")[1])["bound"] is False


def test_a_draft_allows_no_flaw_by_itself():
    flawed = Claims(
        tee="tdx",
        measurement="00" * 48,
        registers={},
        report_data=bytes(64),
        debug=False,
        vendor_root="sha256:" + "00" * 32,
        tcb_status="OutOfDate",
        advisories=("INTEL-SA-00001",),
        weaknesses=("sept-ve",),
        migratable=True,
    )
    draft = reference_table(flawed)
    bare = parse_reference(draft)
    assert (bare.tcb_statuses, bare.advisories_allowed, bare.weaknesses_allowed) == (("UpToDate",), (), ())
    every = parse_reference(judged(draft))
    assert every.tcb_statuses == ("UpToDate", "OutOfDate")
    assert (every.advisories_allowed, every.weaknesses_allowed) == (("INTEL-SA-00001",), ("sept-ve", "migratable"))
    assert set(REASONS) == set(WEAKNESSES)


def test_a_draft_is_json_where_that_is_asked_for_and_compares_what_is_given(run):
    status, out, err = run("appraise", "--draft-policy", "--json", *arguments("azure-snp"))
    told = json.loads(out)
    assert (status, told["bound"], parse_reference(told["policy"]).tees) == (0, False, ("azure-snp",))
    assert "report data not compared" in err
    status, out, _ = run("appraise", "--draft-policy", "--json", "--nonce", "challenge", *arguments("azure-snp"))
    assert (status, json.loads(out)["bound"]) == (0, True)
    assert run("appraise", "--draft-policy", "--nonce", "another", *arguments("azure-snp"))[:2] == (34, "")


@pytest.mark.parametrize("tee", ["tpm", "azure-snp", "nvidia"])
def test_a_nonce_is_found_where_here_puts_it(tee):
    nonce = b"challenge"
    held = bound_data(tee, nonce.ljust(64, b"\0"))
    for data, found in ((nonce, nonce), (held, held), (b"another", nonce)):
        assert attest_appraise._held(Claims(tee, "00", {}, data, False, ""), nonce) == found


@pytest.mark.parametrize(
    "words",
    [
        ["appraise", *arguments("snp"), "--policy", "none", "--nonce", ""],
        ["appraise", *arguments("snp"), "--policy", "none", "--nonce", "hex:"],
        ["verify", *arguments("tdx"), "--device", "0"],
        ["verify", *arguments("nvidia"), "--device", "7"],
        ["show", "azure-vtpm/az-snp-vtpm_evidence-v1.json", "--event-log", "tpm2/swtpm_own/ecc256_quote.sig"],
        ["verify", "tpm2/tpm_evidence_coco.json", "--pcrs", "tpm2/swtpm_own/meta.json"],
        ["verify", "tpm2/tpm_evidence_coco.json", "--signature", "tpm2/swtpm_own/ecc256_quote.sig"],
        ["verify", *arguments("snp"), "--pccs", "https://localhost"],
        ["verify", "-", "--endorsements", "-"],
    ],
)
def test_what_would_be_left_aside_is_bad_usage(run, words):
    status, _, err = run(*words)
    assert (status, len(re.findall("strongroom: error: ", err))) == (2, 1), err


def test_a_nonce_is_no_longer_than_its_field(run, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("snp"))
    (tmp_path / "policy.toml").write_text(draft)
    words = ("appraise", "--policy", tmp_path / "policy.toml", *arguments("snp"), "--nonce", "x" * 65)
    status, _, err = run(*words)
    assert (status, "--nonce: 65 bytes" in err) == (2, True)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0" + bytes(40_000)])
@pytest.mark.parametrize("kind", ["sgx", "tdx", "snp", "nvidia"])
def test_a_file_of_endorsements_that_is_none_is_named(run, kind, content, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    status, _, err = run("verify", GOOD[kind][0], "--endorsements", tmp_path / "a.jpg")
    assert (
        status,
        f"error: {tmp_path / 'a.jpg'}: endorsements" in err,
        "certificate table" in err.splitlines()[0].split("(")[0],
    ) == (
        10,
        True,
        False,
    )
    for words in (
        ("verify", GOOD[kind][0], "--root", tmp_path / "a.jpg"),
        ("endorsements", "bundle", "--add", tmp_path / "a.jpg", "--out", tmp_path / "b"),
    ):
        status, _, err = run(*words)
        assert (status, "a.jpg: " in err) == (10, True), err


def test_a_policy_that_names_a_tpm_s_key_is_enough(run, tmp_path):
    evidence = "tpm2/tpm_evidence_coco.json"
    shown = json.loads(run("show", evidence, "--json")[1])
    (key,) = [
        field["value"]
        for section in shown["sections"]
        for field in section["fields"]
        if (section["title"], field["name"]) == ("key", "key")
    ]
    (measurement,) = [
        field["value"] for section in shown["sections"] for field in section["fields"] if field["name"] == "measurement"
    ]
    policy = tmp_path / "policy.toml"
    table = f'[reference]\ntees = ["tpm"]\nmeasurements = ["{measurement}"]\n'
    policy.write_text(table + f'tpm_roots = ["{key}"]\n')
    words = ("appraise", evidence, "--policy", policy, "--any-report-data")
    assert run(*words)[0] == 0
    policy.write_text(table + f'tpm_roots = ["sha256:{"00" * 32}"]\n')
    status, _, err = run(*words)
    assert (status, "--tpm-key" in err, "--root" in err) == (31, True, True)


def test_a_tpm_s_quote_alone_can_be_shown(run):
    status, out, _ = run("show", "tpm2/swtpm_own/ecc256_quote.msg")
    assert (status, "extra data" in out) == (0, True)
    assert run("verify", "tpm2/swtpm_own/ecc256_quote.msg")[0] == 10


@pytest.mark.parametrize("words", [["--debug", "verify"], ["verify", "--debug"]])
def test_debug_shows_the_stack_trace_wherever_it_stands(capsys, words):
    assert main(["attest", *words, "aws-nitro/SOURCE.md"]) == 10
    told = capsys.readouterr()
    assert "Traceback" in told.err
    assert "strongroom: error: " in told.err


@pytest.mark.parametrize(
    "words",
    [
        ["policy", "check", "NO"],
        ["mpc", "cost", "--shape", "1,3", "NO"],
        ["mpc", "audit", "NO"],
        ["vault", "ls", "NO"],
        ["mirror", "ls", "NO"],
        ["verify", "model", "NO"],
        ["spot", "simulate", "--trace", "NO"],
        ["cas", "audit", "verify", "NO"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_so_it_does_for_every_verb_of_several_actions(capsys, tmp_path, words):
    words = [str(tmp_path / "none") if word == "NO" else word for word in words]
    assert main([words[0], "--debug", *words[1:]]) != 0
    told = capsys.readouterr().err
    assert "Traceback" in told and "strongroom: error: " in told


def test_bad_usage_is_json_where_that_is_asked_for(run, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["attest", "verify", "--json"])
    assert ended.value.code == 2
    assert json.loads(capsys.readouterr().out)["code"] == "usage"


def test_the_others_reasons_come_after_the_error(run, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("snp"))
    (tmp_path / "policy.toml").write_text(draft.replace('["snp"]', '["tdx"]'))
    _, _, err = run("appraise", "--policy", tmp_path / "policy.toml", "--nonce", "x", *arguments("snp"))
    assert err.index("strongroom: error: tee") < err.index("strongroom: also refused: report data")


def test_an_error_on_a_full_disk_is_told_once(tmp_path):
    with Path("/dev/full").open("wb") as full:
        for words in (["--json"], []):
            done = subprocess.run(
                [sys.executable, "-m", "strongroom", "attest", "show", GOOD["nitro"][0], *words],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert "Traceback" not in done.stderr
            assert done.stderr.count("strongroom: error: no space left on device") == 1


def test_an_interrupt_while_modules_are_imported_is_no_stack_trace(monkeypatch, capsys):
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("strongroom.cli.main.importlib.import_module", interrupted)
    assert main(["attest", "verify"]) == 130
    assert capsys.readouterr().err == ""


def test_help_imports_no_action():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "strongroom", "attest", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "appraise" in done.stdout
    assert "strongroom.cas" not in done.stderr
    assert "strongroom.attest" not in done.stderr


def test_no_color_is_obeyed():
    code = (
        "from strongroom.cli import output; output.stdout._force_terminal = True; output.stdout.print('x', style='red')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NO_COLOR": "1", "TERM": "xterm", "COLORTERM": "truecolor"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "x\n"


@pytest.mark.parametrize("kind", GOOD)
def test_show_has_the_measurement_that_verify_vouches_for(run, kind):
    shown = json.loads(run("show", "--json", *arguments(kind, trust=False))[1])["sections"]
    values = {field["value"] for section in shown for field in section["fields"]}
    assert json.loads(run("verify", "--json", *arguments(kind))[1])["claims"]["measurement"] in values


def test_a_draft_names_the_product_and_offers_to_require_what_was_checked(run):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("snp"))
    assert re.search(r"\n\[reference\.minimum_tcb\.snp\.(Milan|Genoa|Turin)\]\n", draft)
    assert "revocation_required" not in draft
    _, draft, _ = run("appraise", "--draft-policy", *arguments("sgx"))
    assert "\n# revocation_required = true\n" in draft
    _, draft, _ = run("appraise", "--draft-policy", *arguments("nvidia"))
    assert draft.startswith("# A device by itself is no enclave")
    assert "\n[reference.devices]\n" in draft and "\n[reference]\n" not in draft


def test_unchecked_revocation_is_shown_and_refused_where_the_policy_requires_it(run, tmp_path):
    status, out, _ = run("verify", *arguments("snp"))
    assert (status, bool(re.search(r"\n  revocation +not checked\n", out))) == (0, True)
    assert json.loads(run("verify", "--json", *arguments("sgx"))[1])["claims"]["revocation"] == "checked"
    _, draft, _ = run("appraise", "--draft-policy", *arguments("snp"))
    policy = tmp_path / "policy.toml"
    policy.write_text(judged(draft).replace("[reference]\n", "[reference]\nrevocation_required = true\n"))
    status, out, err = run("appraise", "--policy", policy, "--any-report-data", *arguments("snp"))
    assert (status, "revocation: got not checked" in err, "endorsements fetch" in err) == (36, True, True)


def test_a_device_by_itself_is_appraised_by_its_table_and_is_no_enclave(run, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("nvidia"))
    policy = tmp_path / "policy.toml"
    policy.write_text(draft)
    status, out, _ = run("appraise", "--policy", policy, "--any-report-data", *arguments("nvidia"))
    assert (status, "the policy wants this device, with an enclave that uses it" in out) == (0, True)
    policy.write_text('[reference]\ntees = ["tdx"]\nmeasurements = ["' + "ab" * 48 + '"]\n')
    status, _, err = run("appraise", "--policy", policy, "--any-report-data", *arguments("nvidia"))
    assert (status, "nvidia evidence: a device by itself, wanted an enclave" in err) == (30, True)
