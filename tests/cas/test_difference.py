"""What changed between two versions, in words that say which way."""

from __future__ import annotations

import pytest

from strongroom.cas.policy.difference import Change, differences
from strongroom.cas.policy.version import parse_policy
from strongroom.crypto import SigningKey
from tests.cas.owners import ADMIN, KEYS, ROOT, table
from tests.cas.world import PROGRAM, document

A, B = "aa" * 48, "bb" * 48
VAULT = '[[vaults]]\nname = "v"\naccess = "{}"\n'
SECRET = '[[secrets]]\nname = "s"\nenvironment = "S"\n'
PCR = "1" * 63 + "2"
TPM = {"tees": ["tpm"], "tpm_roots": [f"sha256:{PCR}"]}
DEVICES = f'[reference.devices]\ntees = ["nvidia"]\nmeasurements = ["{A}"]\n'


def policy(more="", **changes):
    changes.setdefault("reference", {"measurements": [A]})
    return parse_policy(document(ADMIN, vendor_root=ROOT, more=more, **changes))


def reference(**values):
    return policy(reference={"measurements": [A]} | values)


SNP = {"tees": ["snp"]}
AMD = {"measurements": [A], **SNP}
FROM = "is accepted from bootloader 4, tee 0, snp 22, microcode 7 on"


def floor(product="", more=""):
    name = f"snp.{product}" if product else "snp"
    return f"[reference.minimum_tcb.{name}]\nbootloader = 4\ntee = 0\nsnp = 22\nmicrocode = 7\n{more}"


def now(name):
    return (f"owners.keys.{name}", "other", f"is an owner now, with the key {KEYS[name].public.fingerprint}")


NVIDIA = [
    ("reference.devices.tees", "more", "nvidia is accepted"),
    ("reference.devices.measurements", "more", f"{A} is accepted"),
]
SIGNER, CHIP, OTHER_CHIP, REGISTER = "ab" * 48, "ab" * 64, "cd" * 64, "ab" * 32


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (policy(), policy(version=2, previous=ROOT), []),
        (policy(PROGRAM), policy("# a comment\n" + PROGRAM), []),
        (
            reference(),
            reference(measurements=[B]),
            [
                ("reference.measurements", "more", f"{B} is accepted"),
                ("reference.measurements", "less", f"{A} is not accepted any more"),
            ],
        ),
        (
            reference(**SNP),
            reference(**SNP, signers=[SIGNER]),
            [("reference.signers", "less", f"is asked for: {SIGNER}")],
        ),
        (
            reference(**SNP, signers=[SIGNER]),
            reference(**SNP),
            [("reference.signers", "more", "is not asked for any more")],
        ),
        (
            reference(**SNP, hardware_ids=[CHIP]),
            reference(**SNP, hardware_ids=[CHIP, OTHER_CHIP]),
            [("reference.hardware_ids", "more", f"{OTHER_CHIP} is accepted")],
        ),
        (reference(maximum_age=60), reference(), [("reference.maximum_age", "more", "was 60 s, is any")]),
        (
            reference(maximum_age=60),
            reference(maximum_age=30),
            [("reference.maximum_age", "less", "was 60 s, is 30 s")],
        ),
        (
            reference(),
            reference(allow_simulated=None),
            [("reference.allow_simulated", "less", "simulated ones are not accepted any more")],
        ),
        (
            reference(allow_simulated=None),
            reference(),
            [("reference.allow_simulated", "more", f"simulated ones of {ROOT} are accepted, which protect nothing")],
        ),
        (
            policy("[reference.minimum_tcb.tdx]\nmodule = 5\n"),
            policy("[reference.minimum_tcb.tdx]\nmodule = 4\nevaluation = 17\n"),
            [
                ("reference.minimum_tcb.tdx.evaluation", "less", "was any, is 17"),
                ("reference.minimum_tcb.tdx.module", "more", "was 5, is 4"),
            ],
        ),
        (
            policy(f'[reference.registers]\nhost_data = ["{REGISTER}"]\n', reference={"measurements": [A], **SNP}),
            policy(f'[reference.registers]\nimage_id = ["{REGISTER[:32]}"]\n', reference={"measurements": [A], **SNP}),
            [
                ("reference.registers.host_data", "more", "is not asked for any more"),
                ("reference.registers.image_id", "less", f"is asked for: {REGISTER[:32]}"),
            ],
        ),
        (
            policy(floor("Milan") + floor("Turin", "fmc = 1\n"), reference=AMD),
            policy(floor("Milan").replace("snp = 22", "snp = 23") + floor("Genoa"), reference=AMD),
            [
                ("reference.minimum_tcb.snp.Genoa", "more", FROM),
                ("reference.minimum_tcb.snp.Milan.snp", "less", "was 22, is 23"),
                ("reference.minimum_tcb.snp.Turin", "less", "is not there any more"),
            ],
        ),
        (
            policy(floor(), reference=AMD),
            policy(floor("Milan"), reference=AMD),
            [
                ("reference.minimum_tcb.snp", "other", "is not there any more"),
                ("reference.minimum_tcb.snp.Milan", "other", FROM),
            ],
        ),
        (
            reference(**TPM),
            policy(
                f'[reference.platforms.tpm]\npcr4 = ["{PCR}", "{PCR[::-1]}"]\n', reference={"measurements": [A], **TPM}
            ),
            [
                (
                    "reference.platforms.tpm",
                    "other",
                    "programs on such a machine are accepted, and no other evidence of it",
                ),
                ("reference.platforms.tpm.pcr4", "other", f"is asked for: {PCR}, {PCR[::-1]}"),
            ],
        ),
        (
            reference(revocation_required=True),
            reference(),
            [("reference.revocation_required", "more", "certificates count if nobody shows that they are revoked")],
        ),
        (
            policy(DEVICES),
            policy(DEVICES + "count = 2\n"),
            [("reference.devices.count", "less", "was any number of devices, is 2")],
        ),
        (
            policy(),
            policy(DEVICES + "count = 2\n"),
            [("reference.devices", "other", "exactly 2 devices must be shown, and each must fit"), *NVIDIA],
        ),
        (
            policy(),
            policy(DEVICES),
            [("reference.devices", "other", "at least one device must be shown, and each must fit"), *NVIDIA],
        ),
        (
            policy(),
            policy(DEVICES + f'hardware_ids = ["{REGISTER}"]\nallow_simulated = "{ROOT}"\n'),
            [
                ("reference.devices", "other", "at least one device must be shown, and each must fit"),
                *NVIDIA,
                ("reference.devices.hardware_ids", "less", f"is asked for: {REGISTER}"),
                (
                    "reference.devices.allow_simulated",
                    "more",
                    f"simulated ones of {ROOT} are accepted, which protect nothing",
                ),
            ],
        ),
        (
            policy(DEVICES),
            policy(),
            [("reference.devices", "other", "no device may be shown")],
        ),
        (
            policy(DEVICES),
            policy(DEVICES.replace(A, B)),
            [
                ("reference.devices.measurements", "more", f"{B} is accepted"),
                ("reference.devices.measurements", "less", f"{A} is not accepted any more"),
            ],
        ),
        (
            policy(VAULT.format("read-only")),
            policy(VAULT.format("read-write") + 'mount = "/v"\n'),
            [
                ("vaults.v.access", "more", "the enclave may read and write it; before it could only read it"),
                ("vaults.v.mount", "other", "was not mounted, is /v"),
            ],
        ),
        (
            policy(VAULT.format("read-only")),
            policy(),
            [("vaults.v", "less", "the enclave does not get its key any more")],
        ),
        (
            policy(),
            policy(VAULT.format("read-write") + 'mount = "/v"\n'),
            [("vaults.v", "more", "the enclave gets its key, to read and write it at /v")],
        ),
        (
            policy(SECRET),
            policy(SECRET.replace('"S"', '"T"') + "generate = 16\n"),
            [
                ("secrets.s.environment", "other", "was S, is T"),
                ("secrets.s.generate", "other", "was stored by its owner, is 16 bytes drawn by the CAS"),
            ],
        ),
        (
            policy('[program]\ncommand = ["a"]\nfiles = ["f"]\n'),
            policy('[program]\ncommand = ["b"]\nfiles = ["g"]\n[program.environment]\nX = "1"\n'),
            [
                ("program.command", "other", "was ['a'], is ['b']"),
                ("program.files", "other", "'f' is left out"),
                ("program.files", "other", "'g' belongs to it"),
                ("program.environment.X", "other", "was not set, is '1'"),
            ],
        ),
        (
            policy(),
            policy('[program]\ncommand = ["sh", "-c", "x"]\nfiles = ["f"]\n[program.environment]\nX = "1"\n'),
            [
                ("program", "other", "is named now"),
                ("program.command", "other", "is ['sh', '-c', 'x']"),
                ("program.files", "other", "'f' belongs to it"),
                ("program.environment.X", "other", "was not set, is '1'"),
            ],
        ),
        (
            policy('[program]\ncommand = ["x"]\nfiles = ["f"]\n'),
            policy(),
            [("program", "other", "is not named any more")],
        ),
        (policy(), policy(SECRET), [("secrets.s", "more", "the enclave gets it as S, stored by its owner")]),
        (
            policy(),
            policy(SECRET + "generate = 16\n"),
            [("secrets.s", "more", "the enclave gets it as S, 16 bytes drawn by the CAS")],
        ),
        (
            policy(),
            policy(table(2, ["alice", "bob"])),
            [("owners", "less", "2 of 2 owners must sign"), now("alice"), now("bob")],
        ),
        (
            policy(table(2, ["alice", "bob"])),
            policy(table(2, ["alice", "bob", "carol"])),
            [now("carol")],
        ),
        (
            policy(table(2, ["alice", "bob"])),
            policy(table(1, ["bob"])),
            [
                ("owners.keys.alice", "other", "is no owner any more"),
                ("owners.threshold", "more", "was 2, is 1 of 1"),
            ],
        ),
        (
            policy(table(2, ["alice", "bob"])),
            policy(),
            [("owners", "more", "no owner need sign; the administrator alone changes the policy")],
        ),
    ],
)
def test_what_changed_is_told(old, new, changes):
    assert differences(old, new) == [Change(*change) for change in changes]


def test_another_key_and_another_administrator_are_told():
    other = SigningKey.generate()
    old, new = policy(table(1, ["alice"])), policy(table(1, [], alice=other), owner=other.public.fingerprint)
    assert [(each.key, each.text) for each in differences(old, new)] == [
        ("policy.owner", f"was {ADMIN.public.fingerprint}, is {other.public.fingerprint}"),
        (
            "owners.keys.alice",
            f"has another key: was {KEYS['alice'].public.fingerprint}, is {other.public.fingerprint}",
        ),
    ]
