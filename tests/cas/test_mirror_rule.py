"""A policy's rule for a mirror: what it may say."""

import pytest

from strongroom.cas.policy.version import parse_policy
from strongroom.errors import PolicyError

DIGEST = "sha256:" + "0" * 64
POLICY = f"""
[policy]
name = "some/training"
version = 1
owner = "{DIGEST}"
role = "ROLE"
[reference]
tees = ["simulated"]
measurements = ["{"0" * 96}"]
allow_simulated = "{DIGEST}"
"""
MIRROR = '[[vaults]]\nname = "NAME"\naccess = "mirror"\n'


def policy(*rules: str, role: str = "program") -> str:
    return POLICY.replace("ROLE", role) + "".join(rules)


def test_a_program_has_a_mirror_without_a_mount():
    [rule] = parse_policy(policy(MIRROR)).vaults
    assert (rule.name, rule.mount, rule.access) == ("NAME", "", "mirror")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (policy(MIRROR + 'mount = "/mirror"\n'), "vaults.mount: got '/mirror', and a mirror has none"),
        (policy(MIRROR, MIRROR.replace("NAME", "OTHER")), "vaults: 2 mirrors in a program's policy"),
        (policy(MIRROR, role="service"), "vaults: 1 mirrors in a service's policy"),
    ],
)
def test_other_mirrors_are_refused(text, said):
    with pytest.raises(PolicyError, match=said):
        parse_policy(text)
