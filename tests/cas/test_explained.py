"""Everything that is wrong with a document is told at once, each with its key and its line."""

from __future__ import annotations

import pytest

from strongroom.cas.policy.lines import Lines
from strongroom.cas.policy.version import policy_problems
from tests.cas.owners import ADMIN, ROOT, table
from tests.cas.world import PROGRAM, document

WRONG = """\
# A comment with [brackets] and "quotes
[policy]
name = 'Acme'  # upper case
version = 1
owner = "sha256:00"
rôle = "x"

[reference]
tees = [
  "sev", # ]
  "tdx",
]
measurements = ["zz"]
maximum_age = 0
[reference.registers]
pcr4 = []
[reference.devices]
tees = ["tdx"]
[reference.minimum_tcb.tdx]
"module" = -1

[program]
command = ['''
[not a table]
x = 1
''']
files = ["/etc/passwd"]
environment = { LD_PRELOAD = "x", "A-B" = "y" }

[[vaults]]
name = "v"
access = "read-only"
[[vaults]]
name = "v"
access = "all"
mount = "/etc"
[[secrets]]
name = "s"
[secrets.more]
x = 1

[owners]
threshold = 9
keys.alice = "?"
"""


def test_every_problem_has_its_line():
    wrong = WRONG.replace("rôle", '"rôle"')
    lines = Lines(wrong)
    found = {problem.key: lines.of(problem.where) for problem in policy_problems(wrong)}
    assert found == {
        "policy.name": 3,
        "policy.owner": 5,
        "policy.rôle": 6,
        "policy.role": 2,
        "reference.tees": 9,
        "reference.measurements": 13,
        "reference.maximum_age": 14,
        "reference.registers.pcr4": 16,
        "reference.devices.tees": 18,
        "reference.devices.measurements": 17,
        "reference.minimum_tcb.tdx.module": 20,
        "program.files": 27,
        "program.environment.LD_PRELOAD": 28,
        "program.environment.A-B": 28,
        "vaults[1].name": 34,
        "vaults[1].access": 35,
        "vaults[1].mount": 36,
        "secrets[0].more": 39,
        "owners.threshold": 43,
        "owners.keys.alice": 44,
    }


def test_what_is_not_toml_is_one_problem():
    [problem] = policy_problems(WRONG)
    assert problem.error.message.startswith("policy: not TOML")


def test_a_sound_document_has_no_problem():
    assert policy_problems(document(ADMIN, vendor_root=ROOT, more=table(2, ["alice", "bob"]) + PROGRAM)) == []


@pytest.mark.parametrize("name", ["policy", "reference"])
def test_a_missing_table_is_one_problem(name):
    text = document(ADMIN, vendor_root=ROOT).replace(f"[{name}]", f"[x{name}]")
    assert [problem.key for problem in policy_problems(text)] == [name, f"x{name}"]


def test_a_document_of_unknown_keys_is_told_a_hundred_of_them():
    assert len(policy_problems("".join(f"k{n} = 1\n" for n in range(20_000)))) == 100
