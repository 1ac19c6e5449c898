"""What changed in what a policy gives and allows, and which way: what a person must see before signing."""

from __future__ import annotations

import pytest

from strongroom.cas.policy.difference import Change, differences
from strongroom.cas.policy.version import parse_policy
from tests.cas.owners import ROOT
from tests.cas.test_rules import (
    KEY,
    OIDC,
    PEM,
    WHOLE,
    egress,
    path,
    person,
    sealed,
    secret,
    text,
    vault,
    written,
)

ROOT_OF_PEM = "sha256:bca37811a62002a4b65a93f67d1c183f05dac1f32ed5f33d8fef07dcc589d1f0"  # openssl x509 -fingerprint
FROM = {"from": "h/r"}
IMPORTS = {"purpose": "p"}
PERSON = f"{KEY} may log for everything"


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (WHOLE, WHOLE, []),
        (
            text(),
            text(instances=2, lease=60, expires="2027-01-01T00:00:00Z"),
            [
                ("policy.expires", "less", "was never, is 2027-01-01T00:00:00Z"),
                ("policy.instances", "less", "was any number, is 2"),
                ("policy.lease", "less", "was 600 s, is 60 s"),
            ],
        ),
        (
            text(instances=2, lease=60, expires="2027-01-01T00:00:00Z"),
            text(instances=3, lease=61, expires="2027-01-01T00:00:00-01:00"),
            [
                ("policy.expires", "more", "was 2027-01-01T00:00:00Z, is 2027-01-01T01:00:00Z"),
                ("policy.instances", "more", "was 2, is 3"),
                ("policy.lease", "more", "was 60 s, is 61 s"),
            ],
        ),
        (text("[mesh]\n"), text('[mesh]\ntransport = "tls"\n'), []),
        (
            text("[mesh]\n"),
            text('[mesh]\ntransport = "wireguard"\n'),
            [("mesh.transport", "other", "was tls, is wireguard")],
        ),
        (
            text(instances=2, expires="2027-01-01T00:00:00Z"),
            text(),
            [
                ("policy.expires", "more", "was 2027-01-01T00:00:00Z, is never"),
                ("policy.instances", "more", "was 2, is any number"),
            ],
        ),
        (
            text(purpose="a", recipients=["x/y"]),
            text(purpose="b", recipients=[KEY]),
            [
                ("policy.purpose", "other", "was 'a', is 'b'"),
                ("policy.recipients", "more", f"{KEY} receives the outputs"),
                ("policy.recipients", "less", "x/y does not receive the outputs any more"),
            ],
        ),
        (text(), text(person()), [("administrators.a", "more", PERSON)]),
        (text(person()), text(), [("administrators.a", "less", "is no administrator any more")]),
        (
            text(person() + secret()),
            text(person(may=["secrets"], resources=["secret:s"], **OIDC) + secret()),
            [
                ("administrators.a", "other", f"is another: was {KEY}, is x of https://id.example"),
                ("administrators.a.may", "more", "may secrets too"),
                ("administrators.a.may", "less", "may not log any more"),
                ("administrators.a.resources", "less", "was for everything, is for secret:s"),
            ],
        ),
        (
            text(person(resources=["secret:s"]) + secret()),
            text(person() + secret()),
            [("administrators.a.resources", "more", "was for secret:s, is for everything")],
        ),
        (
            text(),
            text(secret(deposited=True)),
            [
                ("secrets.s", "more", "the enclave gets it where a template names it, deposited by an enclave"),
                ("secrets.s.deposited", "more", "an enclave may write it"),
            ],
        ),
        (
            text(secret(environment="A")),
            text(secret(deposited=True)),
            [
                ("secrets.s.environment", "other", "was A, is no variable"),
                ("secrets.s.deposited", "more", "an enclave may write it"),
            ],
        ),
        (
            text(secret(), **IMPORTS),
            text(secret(**FROM), **IMPORTS),
            [("secrets.s.from", "more", "was this policy's own, is h/r's")],
        ),
        (text(), text(written()), [("files./f", "other", "is written, mode 0400: ''")]),
        (
            text(written()),
            text(written(content="a\n", mode="0444")),
            [("files./f.content", "other", "was '', is 'a\\n'"), ("files./f.mode", "other", "was 0400, is 0444")],
        ),
        (text(written()), text(), [("files./f", "other", "is not written any more")]),
        (
            text(instances=3),
            text(vault(access="read-write", writers=[2, 0], freshness="grouped"), instances=3),
            [
                ("vaults.v", "more", "the enclave gets its key, to read and write it; who writes it: replica 0, 2"),
                ("vaults.v.freshness", "more", "its newest commits may be taken back unseen"),
            ],
        ),
        (
            text(vault(access="read-write", writers=[0]), instances=3),
            text(vault(access="read-write", writers=[0, 1], freshness="grouped"), instances=3),
            [
                ("vaults.v.freshness", "more", "its newest commits may be taken back unseen"),
                ("vaults.v.writers", "more", "was replica 0, is replica 0, 1"),
            ],
        ),
        (
            text(sealed(access="read-write"), instances=3),
            text(sealed(access="read-write", writers=[1], path="/n"), instances=3),
            [
                ("sealed.m.path", "other", "was /m, is /n"),
                ("sealed.m.writers", "less", "was every replica, is replica 1"),
            ],
        ),
        (
            text(**IMPORTS),
            text(vault(**FROM) + sealed(), **IMPORTS),
            [
                ("vaults.v", "more", "the enclave gets its key, to only read it, of h/r"),
                ("sealed.m", "more", "the enclave gets its key, to only read it at /m"),
            ],
        ),
        (
            text(path()),
            text(path(rule="host")),
            [
                (
                    "paths./p",
                    "more",
                    "was in memory, gone with the enclave, is the host's own files, which it reads and changes",
                )
            ],
        ),
        (
            text(path(rule="host")),
            text(),
            [("paths./p", "less", "was the host's own files, which it reads and changes, is under no rule")],
        ),
        (
            text(vault()),
            text(vault() + path(rule="encrypted", vault="v")),
            [("paths./p", "other", "was under no rule, is encrypted in the vault v")],
        ),
        (
            text('[mesh]\npeers = ["a/b"]\npublish = [{ name = "api", port = 1 }]\n'),
            text('[mesh]\npeers = ["c/d"]\npublish = [{ name = "api", port = 2 }, { name = "m", port = 3 }]\n'),
            [
                ("mesh.peers", "more", "c/d is a peer"),
                ("mesh.peers", "less", "a/b is no peer any more"),
                ("mesh.publish.api", "other", "was port 1, is port 2"),
                ("mesh.publish.m", "more", "outsiders reach port 3"),
            ],
        ),
        (
            text(),
            text(egress()),
            [
                (
                    "egress.a.example:443",
                    "more",
                    "the program may reach it, vouched for by any of the system's roots",
                )
            ],
        ),
        (
            text(egress()),
            text(egress(ca=KEY)),
            [("egress.a.example:443.ca", "less", f"was any of the system's roots, is the root {KEY}")],
        ),
        (
            text(egress(ca=PEM, tls="program")),
            text(egress(ca=ROOT_OF_PEM)),
            [("egress.a.example:443.tls", "less", "the program judged it, the enclave does")],
        ),
        (
            text(egress()),
            text(egress(tls="program") + egress(port=1, tls="program")),
            [
                (
                    "egress.a.example:1",
                    "more",
                    "the program may reach it, vouched for by any of the system's roots, if the program looks",
                ),
                ("egress.a.example:443.tls", "more", "the enclave judged it, the program does"),
            ],
        ),
        (text(egress(ca=ROOT)), text(), [("egress.a.example:443", "less", "the program may not reach it any more")]),
    ],
)
def test_what_changed_is_told(old, new, changes):
    assert differences(parse_policy(old), parse_policy(new)) == [Change(*change) for change in changes]


def test_whatever_a_policy_adds_is_told():
    """Nothing of a document with every key goes unsaid, nor when it is taken out again."""
    kinds = {
        *("policy.expires", "policy.instances", "policy.lease", "policy.purpose", "policy.recipients"),
        *("administrators", "program", "secrets", "files", "vaults", "sealed", "paths", "mesh", "egress"),
    }
    for old, new in ((text(""), WHOLE), (WHOLE, text(""))):
        told = {each.key for each in differences(parse_policy(old), parse_policy(new))}
        assert {kind for kind in kinds if not any(key.startswith(kind) for key in told)} == set()
