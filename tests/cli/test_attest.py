"""`strongroom attest`: what a person sees, and with which status it ends."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import ColorSystem

from strongroom.attest.claims import REGISTERS, Claims
from strongroom.attest.files import read_evidence
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.cas.policy import parse_reference
from strongroom.cli import attest_appraise, attest_words, output
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
    assert re.search(r"\nheld \(every step, at 20\d\d-", out)
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
    policy.write_text(draft)
    status, out, err = run("appraise", "--policy", policy, "--any-report-data", *arguments(kind))
    assert (status, "the policy wants this enclave" in out) == (0, True)
    assert "report data not compared" in err
    status, _, err = run("appraise", "--policy", policy, *arguments(kind))
    assert (status, "report data: nothing to compare with" in err) == (34, True)
    status, _, err = run("appraise", "--policy", policy, "--nonce", "another", *arguments(kind))
    assert (status, "report data: got" in err) == (34, True)


def test_an_azure_td_without_collateral_is_refused_though_the_draft_lists_its_weakness(run, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("azure-tdx"))
    assert 'weaknesses_allowed = ["sept-ve"]' in draft
    assert "verify with Intel's collateral" in draft
    (tmp_path / "policy.toml").write_text(draft)
    words = ("--policy", tmp_path / "policy.toml", "--nonce", "challenge")
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
    for moment in ("yesterday", "9" * 16, "2025"):
        with pytest.raises(SystemExit):
            run("verify", "aws-nitro/nitro.b64", "--at", moment)
    with pytest.raises(SystemExit):
        run("appraise", "aws-nitro/nitro.b64")
    assert "--policy" in capsys.readouterr().err


def test_a_policy_may_be_whole_or_a_table(run, tmp_path):
    _, draft, _ = run("appraise", "--draft-policy", *arguments("sgx"))
    head = f'[policy]\nname = "a/b"\nversion = 1\nowner = "sha256:{"00" * 32}"\nrole = "program"\n'
    for text, status in ((draft, 0), (head + draft, 0), (draft + "[more]\n", 11), ("\udcff", 11), ("x", 11)):
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
    assert (status, "neither in the bundle nor in the cache" in err) == (31, True)
    assert run("endorsements", "bundle", "--out", bundle)[0] == 2
    assert run("endorsements", "fetch", "aws-nitro/nitro.b64", "--out", bundle)[0] == 2


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_lines_that_fit(run, monkeypatch, width):
    monkeypatch.setattr(output.stdout, "_force_terminal", True)
    monkeypatch.setattr(output.stdout, "_width", width)
    monkeypatch.setattr(output.stdout, "_color_system", ColorSystem.STANDARD)
    _, out, _ = run("show", "dcap-tdx/tdx_v4_gcp_cos113.quote.bin")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert "\x1b[1m" in out
    assert max(map(len, plain.splitlines())) <= width


def test_what_evidence_says_never_reaches_the_terminal_as_a_command(run, monkeypatch):
    attest_words.table([("name", "\x1b[2J", "\x07 [bold]")])
    _, out, _ = run("show", "aws-nitro/nitro.b64")
    assert "\x1b" not in out
