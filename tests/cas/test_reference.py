"""The table [reference] of a policy: what it may say, and what it is told when it says something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from strongroom.attest.reference import ReferenceValues
from strongroom.cas.policy.version import parse_policy, parse_reference
from strongroom.errors import PolicyError

GOOD, SIGNER, CHIP = "ab" * 48, "cd" * 48, "ef" * 64
ROOT = "sha256:" + "12" * 32
DEVICES = f'[reference.devices]\ntees = ["nvidia"]\nmeasurements = ["{GOOD}"]\n'
PLAIN = f"""
[reference]
tees = ["snp"]
measurements = ["{GOOD}"]
"""
MILAN = {"bootloader": 4, "tee": 0, "snp": 22, "microcode": 213}
EVERYTHING = f"""
[reference]
tees = ["snp", "tdx", "tpm", "nitro", "simulated"]
measurements = ["{GOOD}"]
tcb_statuses = ["UpToDate", "SWHardeningNeeded"]
advisories_allowed = ["INTEL-SA-00615"]
allow_simulated = "{ROOT}"
signers = ["{SIGNER}"]
hardware_ids = ["{CHIP}"]
tpm_roots = ["{ROOT}"]
weaknesses_allowed = ["sept-ve"]
maximum_age = 300
revocation_required = true

[reference.minimum_tcb.snp.Milan]
bootloader = 4
tee = 0
snp = 22
microcode = 213

[reference.minimum_tcb.azure-snp]
bootloader = 4
tee = 0
snp = 22
microcode = 213

[reference.minimum_tcb.tdx]
module = 5

[reference.registers]
pcr4 = ["{GOOD}", "{SIGNER}"]

[reference.devices]
tees = ["nvidia"]
measurements = ["{SIGNER}"]
hardware_ids = ["00ff"]
count = 8

[reference.devices.registers]
block1 = ["{GOOD}"]
"""


def test_everything_that_a_policy_may_say():
    assert parse_reference(EVERYTHING) == ReferenceValues(
        tees=("snp", "tdx", "tpm", "nitro", "simulated"),
        measurements=(GOOD,),
        tcb_statuses=("UpToDate", "SWHardeningNeeded"),
        advisories_allowed=("INTEL-SA-00615",),
        allow_simulated=ROOT,
        minimum_tcb={"snp": {"Milan": MILAN}, "azure-snp": MILAN, "tdx": {"module": 5}},
        signers=(SIGNER,),
        registers={"pcr4": (GOOD, SIGNER)},
        hardware_ids=(CHIP,),
        tpm_roots=(ROOT,),
        weaknesses_allowed=("sept-ve",),
        maximum_age=300,
        revocation_required=True,
        devices=ReferenceValues(
            ("nvidia",), (SIGNER,), tcb_statuses=(), hardware_ids=("00ff",), registers={"block1": (GOOD,)}, count=8
        ),
    )


def test_what_is_not_said_is_strict():
    reference = parse_reference(PLAIN)
    assert reference == ReferenceValues(("snp",), (GOOD,))
    assert (reference.tcb_statuses, reference.weaknesses_allowed, reference.tpm_roots) == (("UpToDate",), (), ())
    assert reference.allow_simulated is reference.devices is reference.signers is None


def test_a_whole_policy_has_the_same_table():
    head = f'[policy]\nname = "a/b"\nversion = 1\nowner = "{ROOT}"\nrole = "program"\n'
    assert parse_policy(head + EVERYTHING).reference == parse_reference(EVERYTHING)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("signer = []", "reference: unknown key 'signer'"),
        ("signers = []", r"reference\.signers: is empty"),
        ("hardware_ids = []", r"reference\.hardware_ids: is empty"),
        ("tpm_roots = []", r"reference\.tpm_roots: is empty"),
        ('signers = ["XY"]', r"reference\.signers: got 'XY'"),
        ("signers = [1]", r"reference\.signers: wanted an array of strings"),
        ('tpm_roots = ["sha256:0"]', r"reference\.tpm_roots: got 'sha256:0'"),
        ("maximum_age = 0", r"reference\.maximum_age: got 0"),
        ("maximum_age = true", r"reference\.maximum_age: got"),
        ("maximum_age = 0x" + "f" * 5000, r"reference\.maximum_age: got int"),
        ("minimum_tcb = 1", r"reference\.minimum_tcb: got int, wanted a table"),
        ("[reference.minimum_tcb.sev]\nsnp = 1", r"reference\.minimum_tcb\.sev: wanted a table of numbers for one of"),
        ("[reference.minimum_tcb.snp]", r"reference\.minimum_tcb\.snp: wanted a table of numbers"),
        ("[reference.minimum_tcb.snp]\nsnp = -1", r"reference\.minimum_tcb\.snp\.snp: got -1"),
        ('[reference.minimum_tcb.snp]\nsnp = "1"', r"reference\.minimum_tcb\.snp\.snp: got str"),
        ("[reference.minimum_tcb.snp]\nsnp = 0x" + "f" * 5000, r"reference\.minimum_tcb\.snp\.snp: got int"),
        ("[reference.minimum_tcb.snp]\nsnp = 22", r"minimum_tcb\.snp: lacks bootloader, tee, microcode, wanted all of"),
        (
            "[reference.minimum_tcb.snp.Turin]\nbootloader = 1\ntee = 1\nsnp = 1\nmicrocode = 1",
            r"minimum_tcb\.snp\.Turin: lacks fmc, wanted all of",
        ),
        ("[reference.minimum_tcb.snp.Milan]", r"minimum_tcb\.snp\.Milan: lacks bootloader, tee, snp, microcode"),
        (
            "[reference.minimum_tcb.snp.Rome]\nsnp = 1",
            r"minimum_tcb\.snp\.'Rome': next to tables by product",
        ),
        (
            "[reference.minimum_tcb.snp]\ntee = 1\n[reference.minimum_tcb.snp.Milan]",
            r"snp\.'tee': next to tables",
        ),
        ("[reference.minimum_tcb.tdx.Milan]\nsnp = 1", r"minimum_tcb\.tdx\.Milan: got dict, wanted a number"),
        ('allow_simulated = ""', r"reference\.allow_simulated: got '', wanted sha256:<64 hex>"),
        ('revocation_required = "yes"', r"reference\.revocation_required: got str, wanted true or false"),
        ("count = 2", r"reference: unknown key 'count'"),
        (DEVICES + "count = 0", r"reference\.devices\.count: got 0"),
        (DEVICES + "count = 17", r"devices\.count: got 17, wanted how many devices, 1 to 16"),
        ("[reference.registers]\npcr4 = []", r"registers\.pcr4: is empty"),
        (
            '[reference.registers]\npcr4 = ["zz"]',
            r"reference\.registers\.pcr4: no register of snp, wanted some of author_key",
        ),
        ('[reference.registers]\nhost_data = ["zz"]', r"reference\.registers\.host_data: wanted at least one value"),
        ('[reference.registers]\nhost_data = ["0000"]', r"registers\.host_data: got '0000', of 2, wanted 32 bytes"),
        ('hardware_ids = ["aa"]', r"reference\.hardware_ids: got 'aa', of 1, wanted 8 or 64 bytes, as snp has"),
        ('weaknesses_allowed = ["bogus"]', r"reference\.weaknesses_allowed: got 'bogus', wanted some of migratable, "),
        ('tcb_statuses = ["Good"]', r"reference\.tcb_statuses: got 'Good', wanted some of UpToDate, SWHardeningNeeded"),
        ("[reference.minimum_tcb.nitro]\nx = 1", r"minimum_tcb\.nitro\.x: no version of nitro, wanted some of none"),
        ("[reference.devices]", r"reference\.devices\.tees: missing"),
        ('[reference.devices]\ntees = ["nvidia"]', r"reference\.devices\.measurements: missing"),
        (f'[reference.devices]\ntees = ["snp"]\nmeasurements = ["{GOOD}"]', r"reference\.devices\.tees: got"),
        (
            f'[reference.devices]\ntees = ["nvidia"]\nmeasurements = ["{GOOD}"]\ntpm_roots = ["{ROOT}"]',
            r"reference\.devices: unknown key 'tpm_roots'",
        ),
        ("[reference.devices.devices]", r"reference\.devices\.tees: missing"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(more, says):
    with pytest.raises(PolicyError, match=says):
        parse_reference(PLAIN + more)


@pytest.mark.parametrize(
    ("more", "meant"),
    [
        ('weaknesses_alowed = ["vmpl"]', "weaknesses_allowed"),
        ('weaknesses_allowed = ["migrateable"]', "migratable"),
        ('tcb_statuses = ["uptodate"]', "UpToDate"),
        ("[reference.minimum_tcb.snp]\nbootloder = 4", "bootloader"),
        ('[reference.registers]\nhostdata = ["00"]', "host_data"),
    ],
)
def test_what_is_nearly_right_is_suggested(more, meant):
    with pytest.raises(PolicyError) as refusal:
        parse_reference(PLAIN + more)
    assert refusal.value.hint == f"did you mean {meant}?"


def test_what_no_evidence_of_these_kinds_tells_cannot_be_asked_for():
    plain = PLAIN.replace("snp", "tdx")
    with pytest.raises(PolicyError, match="signers: got some, but evidence of tdx tells none") as refusal:
        parse_reference(plain + f'signers = ["{SIGNER}"]')
    assert refusal.value.hint == "leave it out: kinds that tell theirs are sgx, snp, azure-snp, nitro"
    with pytest.raises(PolicyError, match=r"pcr4: no register of tdx, wanted some of .*mrtd, .*rtmr0 to rtmr3"):
        parse_reference(plain + f'[reference.registers]\npcr4 = ["{SIGNER}"]')


def test_the_examples_of_the_documentation_parse():
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "policy.md").read_text()
    blocks = re.findall(r"^```toml\n(\[reference.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        whole = block if block.startswith("[reference]") else PLAIN + block
        whole = re.sub(r"sha256:([0-9a-f]{4})\.\.\.", lambda match: "sha256:" + match[1] * 16, whole)
        # Digits that the page leaves out: as many as such a value has.
        short = r'^(?:host_data|pcr7|hardware_ids)\b.*"([0-9a-f]{4})\.\.\."'
        whole = re.sub(
            short, lambda match: match[0].replace(match[1] + "...", match[1] * 16), whole, flags=re.MULTILINE
        )
        parse_reference(re.sub(r'"([0-9a-f]{4})\.\.\."', lambda match: f'"{match[1] * 24}"', whole))


def test_devices_stand_in_their_own_table():
    for tees in ('"nvidia"', '"tdx", "nvidia"'):
        with pytest.raises(PolicyError, match=r"reference\.tees: got nvidia, wanted some of sgx, tdx") as refusal:
            parse_reference(PLAIN.replace('"snp"', tees))
        assert "a device by itself is no enclave" in (refusal.value.hint or "")
    with pytest.raises(PolicyError, match="tees: got tdx, nvidia, wanted kinds of enclaves or of devices"):
        ReferenceValues(("tdx", "nvidia"), (GOOD,))
    with pytest.raises(PolicyError, match="count: got 2 for tdx, wanted devices"):
        ReferenceValues(("tdx",), (GOOD,), count=2)
    for devices in ("x", ("nvidia",), True):
        with pytest.raises(PolicyError, match=r"devices: got .*, wanted reference values"):
            ReferenceValues(("tdx",), (GOOD,), devices=devices)


def test_a_document_about_devices_alone_accepts_no_enclave():
    alone = parse_reference(DEVICES)
    assert (alone.tees, alone.measurements) == ((), ())
    assert alone.devices is not None and alone.devices.tees == ("nvidia",)
