"""The JSON Schema of the policy's document and the parser agree, and the file in the documentation is it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from strongroom.cas.policy.schema import policy_schema
from strongroom.cas.policy.version import policy_problems
from strongroom.crypto import SigningKey
from tests.cas.json_schema import is_valid
from tests.cas.owners import ADMIN, ROOT, table
from tests.cas.test_reference import EVERYTHING
from tests.cas.world import PROGRAM, document

SCHEMA = policy_schema()
FILE = Path(__file__).parents[2] / "docs" / "reference" / "policy.schema.json"


def text(more: str = "", **changes: object) -> str:
    return document(ADMIN, vendor_root=ROOT, more=more, **changes)


def reference(**values: object) -> str:
    return text(reference=values)


def with_table(tail: str) -> str:
    return text() + tail


VAULT = '[[vaults]]\nname = "v"\naccess = "read-only"\n'
MIRROR = '[[vaults]]\nname = "m"\naccess = "mirror"\n'
SECRET = '[[secrets]]\nname = "s"\n'
HEAD = text().partition("[reference]")[0]
HEX = "ab" * 32

GOOD = [
    text(),
    text(PROGRAM),
    text(table(2, ["alice", "bob", "carol"]) + PROGRAM),
    text(version=2, previous=ROOT, role="service"),
    text(previous=""),
    HEAD + EVERYTHING,
    reference(measurements=[HEX, HEX * 2, "ab" * 48], tcb_statuses=[], advisories_allowed=[]),
    with_table("[reference.registers]\n"),
    with_table("[reference.minimum_tcb]\n"),
    with_table("[reference.minimum_tcb.snp]\nbootloader = 1\ntee = 0\nsnp = 1\nmicrocode = 1\n"),
    with_table("[reference.minimum_tcb.snp.Genoa]\nbootloader = 1\ntee = 0\nsnp = 1\nmicrocode = 1\n"),
    with_table(f'[reference.devices]\ntees = ["nvidia"]\nmeasurements = ["{HEX}"]\ncount = 16\n'),
    reference(revocation_required=False),
    with_table('[program]\ncommand = ["a", ""]\nfiles = []\n'),
    with_table('[program]\ncommand = ["a"]\nfiles = ["a/b", "..a", "a../b"]\n[program.environment]\n_A1 = ""\n'),
    with_table('[program]\ncommand = ["a"]\n[program.environment]\nPYTHONUNBUFFERED = "1"\nENVY = "1"\n'),
    with_table(VAULT + 'mount = ""\n'),
    with_table(VAULT + 'mount = "/a/..b/c."\n'),
    with_table(VAULT + 'mount = "/tmpx"\n'),
    with_table(MIRROR + VAULT),
    with_table(MIRROR + 'mount = ""\n'),
    with_table(SECRET + 'environment = "LDX"\ngenerate = 1024\n'),
    with_table(SECRET),
    "vaults = []\nsecrets = []\n" + text(),
]
BAD = [
    "",
    HEAD,
    EVERYTHING,
    text(name="flowers"),
    text(name="acme/Flowers"),
    text(name="acme/flowers\n"),
    text(name="a" * 64 + "/x"),
    text(name=1),
    text(version=0),
    text(version=2**31),
    text(version=True),
    text(version="1"),
    text(version=None),
    text(owner="sha256:" + "AB" * 32),
    text(owner=None),
    text(previous="x"),
    text(role="job"),
    text(role=None),
    text(colour="red"),
    text("[surprise]\n"),
    reference(tees=[]),
    reference(tees=["sev"]),
    reference(tees="tdx"),
    reference(measurements=[]),
    reference(measurements=None),
    reference(measurements=["AB" * 32]),
    reference(measurements=[HEX + "ab"]),
    reference(allow_simulated=True),
    reference(allow_simulated=""),
    reference(tees=["nvidia"]),
    reference(revocation_required=1),
    reference(count=1),
    reference(allow_simulated="sha256:xyz"),
    reference(signers=[]),
    reference(signers=["abc"]),
    reference(hardware_ids=[""]),
    reference(tpm_roots=[]),
    reference(tpm_roots=[HEX]),
    reference(tcb_statuses=[""]),
    reference(tcb_statuses=["Fine"]),
    reference(weaknesses_allowed=["sept"]),
    reference(advisories_allowed=["a\0b"]),
    reference(weaknesses_allowed=[1]),
    reference(maximum_age=0),
    reference(signer="x"),
    with_table("[reference.registers]\npcr4 = []\n"),
    with_table('[reference.registers]\npcr4 = "ab"\n'),
    with_table("[reference.minimum_tcb.tdx]\n"),
    with_table("[reference.minimum_tcb.sev]\na = 1\n"),
    with_table("[reference.minimum_tcb.tdx]\nmodule = -1\n"),
    with_table("[reference.minimum_tcb.tdx]\nmodule = true\n"),
    with_table("[reference.minimum_tcb.tdx]\nmodul = 1\n"),
    with_table("[reference.minimum_tcb.nitro]\nmodule = 1\n"),
    with_table("[reference.minimum_tcb.snp]\nsnp = 1\n"),
    with_table("[reference.minimum_tcb.snp.Genoa]\nsnp = 1\n"),
    with_table("[reference.minimum_tcb.snp.Turin]\nbootloader = 1\ntee = 0\nsnp = 1\nmicrocode = 1\n"),
    with_table("[reference.minimum_tcb.snp.Rome]\nbootloader = 1\ntee = 0\nsnp = 1\nmicrocode = 1\n"),
    with_table("[reference.minimum_tcb.tdx.Genoa]\nmodule = 1\n"),
    with_table(f'[reference.devices]\ntees = ["nvidia"]\nmeasurements = ["{HEX}"]\ncount = 17\n'),
    with_table("[reference.devices]\n"),
    with_table(f'[reference.devices]\ntees = ["tdx"]\nmeasurements = ["{HEX}"]\n'),
    with_table(f'[reference.devices]\ntees = ["nvidia"]\nmeasurements = ["{HEX}"]\ntcb_statuses = ["UpToDate"]\n'),
    with_table("[program]\n"),
    with_table("[program]\ncommand = []\n"),
    with_table('[program]\ncommand = [""]\n'),
    with_table('[program]\ncommand = "a"\n'),
    with_table('[program]\ncommand = ["a\\u0000"]\n'),
    *(with_table(f'[program]\ncommand = ["a"]\nfiles = ["{name}"]\n') for name in ("", "/a", "..", "a/../b", "a/..")),
    with_table('[program]\ncommand = ["a"]\nfiles = ["a\\n/../b"]\n'),
    *(
        with_table(f'[program]\ncommand = ["a"]\n[program.environment]\n"{name}" = ""\n')
        for name in ("", "1A", "A-B", "A\\n", "LD_PRELOAD", "PYTHONPATH", "PATH", "ENV", "STRONGROOM_X", "A" * 128)
    ),
    with_table('[program]\ncommand = ["a"]\n[program.environment]\nA = 1\n'),
    with_table("[[vaults]]\n"),
    with_table('[[vaults]]\nname = "v"\naccess = "all"\n'),
    with_table('[[vaults]]\nname = "v:w"\naccess = "read-only"\n'),
    with_table("[vaults]\n"),
    *(
        with_table(VAULT + f'mount = "{mount}"\n')
        for mount in ("a", "/", "//a", "/a/", "/a//b", "/a/./b", "/..", "/etc", "/etc/x", "/a\\n", "/a\\u0000")
    ),
    with_table(MIRROR + 'mount = "/m"\n'),
    with_table(MIRROR + MIRROR.replace('"m"', '"n"')),
    text(MIRROR, role="service"),
    with_table(SECRET + 'environment = "PATH"\n'),
    with_table(SECRET + 'environment = "A"\ngenerate = 15\n'),
    with_table(SECRET + 'environment = "A"\ngenerate = true\n'),
    with_table(SECRET + 'environment = "A"\nsize = 1\n'),
    text("[owners]\nthreshold = 1\n"),
    text("[owners]\nthreshold = 1\n[owners.keys]\n"),
    text(table(0, ["alice"])),
    text(table(1, ["alice"]) + 'bob = "MFkw"\n'),
    text(table(1, ["alice"]) + "bob = 1\n"),
    text(table(1, ["alice"]) + '"b b" = ""\n'),
    text(table(1, ["alice"]).replace("[owners.keys]", "veto = true\n[owners.keys]")),
    text(table(1, [], **{f"k{n}": SigningKey.generate() for n in range(33)})),
]


@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
def test_what_the_parser_takes_is_valid(good):
    assert policy_problems(good) == []
    assert is_valid(tomllib.loads(good), SCHEMA)


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_what_the_parser_refuses_is_not(bad):
    assert policy_problems(bad) != []
    assert not is_valid(tomllib.loads(bad), SCHEMA)


def test_the_file_in_the_documentation_is_the_schema():
    """`strongroom policy schema > docs/reference/policy.schema.json` writes it."""
    assert FILE.read_text() == json.dumps(SCHEMA, indent=2) + "\n"
