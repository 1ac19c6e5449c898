"""What a policy may give and allow: each key read as it says, and what is refused named by key, by the schema too."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from strongroom.cas.policy.difference import differences
from strongroom.cas.policy.lines import Lines
from strongroom.cas.policy.network import EgressRule, Mesh, Published
from strongroom.cas.policy.places import PathRule, SealedRule, VaultRule
from strongroom.cas.policy.program import FileRule, SecretRule
from strongroom.cas.policy.rights import Administrator
from strongroom.cas.policy.schema import policy_schema
from strongroom.cas.policy.version import parse_policy, policy_problems
from strongroom.crypto import SigningKey
from strongroom.errors import PolicyError
from tests.cas.json_schema import is_valid
from tests.cas.owners import ADMIN, ROOT
from tests.cas.world import document

SCHEMA = policy_schema()
KEY = "sha256:" + "1a" * 32
PEM = (Path(__file__).parents[1] / "vectors" / "tpm2" / "swtpm_own" / "ek_root.pem").read_text()

EVERYTHING = f"""
[[administrators]]
name = "alice"
key = "{KEY}"
may = ["secrets", "anchors"]
resources = ["secret:db", "vault:train", "sealed:model"]
[[administrators]]
name = "bob"
oidc = "https://login.example.com:8443/realms/acme"
subject = "b0b"
may = ["log"]

[program]
command = ["python", "train.py", "--key=${{secret.db}}"]
[program.environment]
DSN = "db://u:${{secret.db}}@db/$${{name}}"

[[secrets]]
name = "db"
environment = "DB"
generate = 32
[[secrets]]
name = "checkpoint"
deposited = true
[[secrets]]
name = "records"
from = "hospital/records"

[[files]]
path = "/secrets/db.conf"
content = "password=${{secret.db}}\\n"
[[files]]
path = "/secrets/run"
content = ""
mode = "0500"

[[vaults]]
name = "train"
mount = "/train"
access = "read-write"
freshness = "grouped"
writers = [0, 2]
[[vaults]]
name = "images"
mount = "/images"
access = "read-only"
from = "hospital/records"
[[vaults]]
name = "scratch"
access = "read-write"

[[sealed]]
name = "model"
path = "/models/m.onnx"
access = "read-write"
writers = [1]
[[sealed]]
name = "labels"
path = "/models/labels"
access = "read-only"
from = "hospital/records"

[[paths]]
path = "/work"
rule = "ephemeral"
[[paths]]
path = "/work/kept"
rule = "encrypted"
vault = "scratch"
[[paths]]
path = "/shared"
rule = "host"

[mesh]
peers = ["acme/worker", "acme/train"]
publish = [{{ name = "api", port = 8443 }}]

[[egress]]
host = "files.example.com"
port = 443
ca = "system"
[[egress]]
host = "2001:db8::1"
port = 443
ca = "{KEY}"
"""
HEAD = {
    "instances": 3,
    "lease": 60,
    "purpose": "train the triage model",
    "recipients": ["acme/serve", KEY],
}


def text(more: str = "", /, *, expires: str = "", **head: object) -> str:
    document_ = document(ADMIN, vendor_root=ROOT, more=more, **head)
    return document_.replace("[reference]", f"expires = {expires}\n[reference]") if expires else document_


WHOLE = text(EVERYTHING, expires="2027-01-01T01:00:00.75+01:00", **HEAD)


def test_every_key_is_read():
    policy = parse_policy(WHOLE)
    assert (policy.expires, policy.instances, policy.lease) == (1_798_761_600, 3, 60)
    assert (policy.purpose, policy.recipients) == ("train the triage model", ("acme/serve", KEY))
    assert policy.administrators == (
        Administrator(
            "alice",
            KEY,
            None,
            None,
            frozenset({"secrets", "anchors"}),
            ("secret:db", "vault:train", "sealed:model"),
        ),
        Administrator("bob", None, "https://login.example.com:8443/realms/acme", "b0b", frozenset({"log"})),
    )
    assert policy.secrets == (
        SecretRule("db", "DB", 32),
        SecretRule("checkpoint", deposited=True),
        SecretRule("records", source="hospital/records"),
    )
    assert policy.files == (
        FileRule("/secrets/db.conf", "password=${secret.db}\n", 0o400),
        FileRule("/secrets/run", "", 0o500),
    )
    assert policy.vaults == (
        VaultRule("train", "/train", "read-write", "grouped", (0, 2)),
        VaultRule("images", "/images", "read-only", source="hospital/records"),
        VaultRule("scratch", "", "read-write"),
    )
    assert policy.sealed == (
        SealedRule("model", "/models/m.onnx", "read-write", writers=(1,)),
        SealedRule("labels", "/models/labels", "read-only", source="hospital/records"),
    )
    assert policy.paths == (
        PathRule("/work", "ephemeral"),
        PathRule("/work/kept", "encrypted", "scratch"),
        PathRule("/shared", "host"),
    )
    assert policy.mesh == Mesh(("acme/worker", "acme/train"), (Published("api", 8443),))
    assert policy.egress == (EgressRule("files.example.com", 443, "system"), EgressRule("2001:db8::1", 443, KEY))
    assert policy_problems(WHOLE) == []
    assert is_valid(tomllib.loads(WHOLE), SCHEMA)


def test_what_is_not_said_is_the_strict_default():
    policy = parse_policy(text())
    assert (policy.expires, policy.instances, policy.lease, policy.purpose) == (None, None, 600, "")
    assert (policy.recipients, policy.administrators, policy.files, policy.sealed) == ((), (), (), ())
    assert (policy.paths, policy.mesh, policy.egress) == ((), None, ())


def test_only_the_writers_write():
    rule = parse_policy(WHOLE).vaults[0]
    assert [rule.access_of(replica) for replica in (0, 1, 2, None)] == [
        "read-write",
        "read-only",
        "read-write",
        "read-only",
    ]


def test_an_administrator_may_what_is_named_of_what_is_named():
    alice, bob = parse_policy(WHOLE).administrators
    assert alice.allows("secrets", "secret:db")
    assert not alice.allows("secrets", "secret:records")
    assert not alice.allows("log")
    assert bob.allows("log")
    assert not bob.allows("secrets", "secret:db")


def secret(**more: object) -> str:
    return table("secrets", {"name": "s"} | more)


def vault(**more: object) -> str:
    return table("vaults", {"name": "v", "access": "read-only"} | more)


def sealed(**more: object) -> str:
    return table("sealed", {"name": "m", "path": "/m", "access": "read-only"} | more)


def written(**more: object) -> str:
    return table("files", {"path": "/f", "content": ""} | more)


def path(**more: object) -> str:
    return table("paths", {"path": "/p", "rule": "ephemeral"} | more)


def egress(**more: object) -> str:
    return table("egress", {"host": "a.example", "port": 443, "ca": "system"} | more)


def person(**more: object) -> str:
    return table("administrators", {"name": "a", "key": KEY, "may": ["log"]} | more)


def table(name: str, content: dict[str, object]) -> str:
    """A table of an array; a key whose value is None is left out."""
    return f"[[{name}]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in content.items() if v is not None)


def program(*command: str, **environment: str) -> str:
    return f"[program]\ncommand = {json.dumps(command)}\n[program.environment]\n" + "".join(
        f"{name} = {json.dumps(value)}\n" for name, value in environment.items()
    )


OIDC = {"key": None, "oidc": "https://id.example", "subject": "x"}

GOOD = [
    text(expires="1970-01-01T00:00:00Z"),
    text(expires="9999-12-31 23:59:59-12:00"),
    text(instances=1, lease=10),
    text(instances=10_000, lease=600),
    text(purpose="x" * 200, recipients=[]),
    text(program("$", "a$b", "$$", "$(x)", "$${x}", "$$${secret.s}", X="$")),
    text(secret(generate=16, deposited=False)),
    text(secret(**{"from": "h/r", "deposited": False}), purpose="p"),
    text(secret(environment="A") + program("x", B="${secret.s}${secret.s}")),
    text(written(content="x" * 10_000, mode="0777")),
    text(written() + written(path="/g/f") + written(path="/g/g")),
    text(vault(freshness="strict") + sealed(freshness="grouped")),
    text(vault(mount="/a") + vault(name="w", mount="/a/b/w") + path(path="/a/b") + path(path="/a/b/w/e")),
    text(path(path="/a") + path(path="/a/b") + path(path="/a/b/c") + path(path="/ab")),
    text(vault() + path(rule="authenticated", vault="v")),
    text(vault(mount="/a b") + sealed(path="/a c") + written(path="/a") + path(path="/ab")),
    text("[mesh]\n"),
    text("[mesh]\npublish = []\npeers = []\n", role="service"),
    *(
        text(egress(host=host))
        for host in ("localhost", "a-b.example", "1.2.3.4", "::1", "2001:db8::1", "xn--bcher-kva.example", "1.a")
    ),
    text(egress() + egress(port=8443) + egress(host="b.example")),
    text(egress(ca=PEM, tls="program") + egress(ca=KEY, tls="enclave", port=8443)),
    text(person(**OIDC) + person(**OIDC | {"name": "b", "subject": "y"}) + person(name="c")),
    text(person(resources=["secret:s"], may=["secrets"]) + secret()),
    text(person(**OIDC | {"oidc": "https://[::1]:8443/a/b/"})),
]


@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
def test_what_may_be_said(good):
    parse_policy(good)
    assert policy_problems(good) == []
    assert is_valid(tomllib.loads(good), SCHEMA)


# What is wrong with it, where, and what is said; where the schema cannot say so it is marked.
UNSAID = object()
BAD: list[tuple[str, str, str] | tuple[str, str, str, object]] = [
    # [policy]
    (text(expires="2027-01-01T00:00:00"), "policy.expires", "got 2027-01-01T00:00:00, which is another moment in ev"),
    (text(expires="2027-01-01"), "policy.expires", "got date, wanted a date and time such as"),
    (text(expires="00:00:00"), "policy.expires", "got time"),
    (text(expires="1798761600"), "policy.expires", "got int"),
    (text(expires='"2027-01-01T00:00:00Z"'), "policy.expires", "got str", UNSAID),
    (text(instances=0), "policy.instances", "got 0, wanted 1 to 10000"),
    (text(instances=10_001), "policy.instances", "got 10001, wanted 1 to 10000"),
    (text(instances=True), "policy.instances", "got True"),
    (text(lease=9), "policy.lease", "got 9, wanted 10 to 600"),
    (text(lease=601), "policy.lease", "got 601, wanted 10 to 600"),
    (text(lease="60"), "policy.lease", "got str"),
    (text(purpose=""), "policy.purpose", "wanted 1 to 200 printable characters"),
    (text(purpose="x" * 201), "policy.purpose", "wanted 1 to 200 printable characters"),
    (text(purpose="a\nb"), "policy.purpose", "printable characters in one line"),
    (text(recipients=["acme"]), "policy.recipients", "got 'acme', wanted namespace/name of a policy, or a key's"),
    (text(recipients=[KEY.upper()]), "policy.recipients", "got 'SHA256:"),
    (text(recipients=[KEY, KEY]), "policy.recipients", "appears twice"),
    # [[administrators]]
    (text("[administrators]\n"), "administrators", "wanted an array of tables"),
    (text(person(key=None)), "administrators[0].key", "has neither key nor oidc, wanted one of them"),
    (text(person(key=None, subject="x")), "administrators[0].key", "has neither key nor oidc"),
    (text(person(oidc="https://id.example", subject="x")), "administrators[0].oidc", "has both key and oidc"),
    (text(person(subject="x")), "administrators[0].subject", "goes with oidc"),
    (text(person(**OIDC | {"subject": None})), "administrators[0].subject", "missing"),
    (text(person(**OIDC | {"subject": ""})), "administrators[0].subject", "wanted what the issuer calls the person"),
    (text(person(**OIDC | {"subject": "ü"})), "administrators[0].subject", "wanted what the issuer calls the person"),
    (text(person(**OIDC | {"oidc": "http://id.example"})), "administrators[0].oidc", "begins with https://"),
    (text(person(**OIDC | {"oidc": "https://id.example/?a"})), "administrators[0].oidc", "begins with https://"),
    (text(person(**OIDC | {"oidc": "https://u@id.example"})), "administrators[0].oidc", "begins with https://"),
    (text(person(key="sha256:00")), "administrators[0].key", "got 'sha256:00', wanted a key's fingerprint"),
    (text(person(key=ADMIN.public.fingerprint)), "administrators[0].key", "is that of policy.owner", UNSAID),
    (text(person() + person(name="b")), "administrators[1].key", "appears twice", UNSAID),
    (text(person(**OIDC) + person(**OIDC | {"name": "b"})), "administrators[1].subject", "'x' appears twice", UNSAID),
    (text(person() + person(key=ROOT)), "administrators[1].name", "'a' appears twice", UNSAID),
    (text(person(may=[])), "administrators[0].may", "is empty, and nothing would pass it"),
    (text(person(may=None)), "administrators[0].may", "missing"),
    (text(person(may=["secret"])), "administrators[0].may", "got 'secret', wanted some of apply, secrets, anchors"),
    (text(person(may=["log", "log"])), "administrators[0].may", "'log' appears twice"),
    (text(person(resources=[])), "administrators[0].resources", "is empty"),
    (text(person(resources=["db"])), "administrators[0].resources", "got 'db', wanted secret:NAME"),
    (text(person(resources=["secret:db"])), "administrators[0].resources", "nothing of this policy's", UNSAID),
    (text(person(role="x")), "administrators[0].role", "unknown key 'role'"),
    ("".join([text(), *(person(name=f"a{n}", key=f"sha256:{n:064x}") for n in range(65))]), "administrators[0]", "65"),
    # [[secrets]]
    (text(secret(deposited=1)), "secrets[0].deposited", "got int, wanted true or false"),
    (text(secret(deposited=True, generate=16)), "secrets[0].generate", "what an enclave deposits is not drawn"),
    (
        text(secret(**{"from": "h/r", "generate": 16}), purpose="p"),
        "secrets[0].generate",
        "imported is as 'h/r' has it",
    ),
    (text(secret(**{"from": "h/r", "deposited": True}), purpose="p"), "secrets[0].deposited", "what is imported"),
    (text(secret(**{"from": "h/r"})), "secrets[0].from", "needs policy.purpose"),
    (text(secret(**{"from": "h"}), purpose="p"), "secrets[0].from", "got 'h', wanted the name of a policy"),
    (text(secret(**{"from": ""}), purpose="p"), "secrets[0].from", "got ''"),
    (text(secret(**{"from": "acme/train"}), purpose="p"), "secrets[0].from", "is this policy itself", UNSAID),
    (text(secret(environment="")), "secrets[0].environment", "'' is not the name of an environment variable"),
    # templates
    (text(program("x", "${secret.s}")), "program.command", "${secret.s} is no secret of this policy", UNSAID),
    (text(program("x", A="${secret.s}")), "program.environment.A", "${secret.s} is no secret", UNSAID),
    (text(written(content="${secret.s}")), "files[0].content", "${secret.s} is no secret", UNSAID),
    (text(program("x", "${env.X}")), "program.command", "got '${env.X}', wanted ${secret.NAME}"),
    (text(program("x", A="a${HOME}")), "program.environment.A", "got '${HOME}', wanted ${secret.NAME}"),
    (text(secret() + written(content="${secret.s")), "files[0].content", "got '${secret.s', wanted"),
    (text(secret() + written(content="${secret. s}")), "files[0].content", "wanted ${secret.NAME}"),
    (text(written(content="${}")), "files[0].content", "got '${}', wanted ${secret.NAME}"),
    # [[files]]
    (text(written(path=None)), "files[0].path", "missing"),
    (text(written(path="")), "files[0].path", "got '', wanted an absolute path"),
    (text(written(path="f")), "files[0].path", "got 'f', wanted an absolute path"),
    (text(written(path="/etc/f")), "files[0].path", "/etc is the enclave's own"),
    (text(written(path="/a\x1b")), "files[0].path", "wanted an absolute path"),
    (text(written(content=None)), "files[0].content", "missing"),
    (text(written(content="a\0")), "files[0].content", "holds a NUL character"),
    *((text(written(mode=mode)), "files[0].mode", "wanted a file's mode") for mode in ("400", "0o400", "4755", "0800")),
    (text(written(mode=400)), "files[0].mode", "got int"),
    # [[vaults]] and [[sealed]]
    (text(vault(freshness="loose")), "vaults[0].freshness", "got 'loose', wanted strict or grouped"),
    (text(vault(access="mirror", freshness="strict")), "vaults[0].freshness", "a mirror is as fresh as its last"),
    (text(vault(writers=[0]), instances=2), "vaults[0].writers", "only what is read-write has writers"),
    (text(vault(access="mirror", writers=[0]), instances=2), "vaults[0].writers", "only what is read-write"),
    (text(vault(access="read-write", writers=[0])), "vaults[0].writers", "policy.instances does not say how many"),
    (text(vault(access="read-write", writers=[]), instances=2), "vaults[0].writers", "is empty"),
    (text(vault(access="read-write", writers=[1, 1]), instances=2), "vaults[0].writers", "a replica appears twice"),
    (text(vault(access="read-write", writers=[-1]), instances=2), "vaults[0].writers", "wanted an array of replicas'"),
    (text(vault(access="read-write", writers=[True]), instances=2), "vaults[0].writers", "wanted an array of replicas"),
    (text(vault(access="read-write", writers=0), instances=2), "vaults[0].writers", "wanted an array of replicas'"),
    (
        text(vault(access="read-write", writers=[2]), instances=2),
        "vaults[0].writers",
        "got 2, wanted numbers below policy.instances, 2",
        UNSAID,
    ),
    (text(vault(**{"from": "h/r", "access": "read-write"}), purpose="p"), "vaults[0].access", "what is imported is re"),
    (text(vault(**{"from": "h/r", "access": "mirror"}), purpose="p"), "vaults[0].access", "what is imported is read-"),
    (text(vault(**{"from": "h/r"})), "vaults[0].from", "needs policy.purpose"),
    (text(sealed(**{"from": "h/r"})), "sealed[0].from", "needs policy.purpose"),
    (text(sealed(**{"from": "h/r", "access": "read-write"}), purpose="p"), "sealed[0].access", "is read-only"),
    (text(sealed(access="mirror")), "sealed[0].access", "got 'mirror', wanted read-only or read-write"),
    (text(sealed(path=None)), "sealed[0].path", "missing"),
    (text(sealed(path="m")), "sealed[0].path", "wanted an absolute path"),
    (text(sealed(access="read-write", writers=[0])), "sealed[0].writers", "policy.instances does not say how many"),
    (text(vault() + sealed(name="v")), "sealed[0].name", "'v' appears twice", UNSAID),
    (text(vault(mount="/a") + sealed(path="/a/m")), "sealed[0].path", "'/a/m' lies in '/a'", UNSAID),
    (text(vault(mount="/a/b/c") + sealed(path="/a")), "vaults[0].mount", "'/a/b/c' lies in '/a'", UNSAID),
    (text(sealed() + written(path="/m")), "sealed[0].path", "'/m' appears twice", UNSAID),
    (text(written() + written()), "files[1].path", "'/f' appears twice", UNSAID),
    # [[paths]]
    (text(path(rule="plain")), "paths[0].rule", "got 'plain', wanted encrypted or authenticated or ephemeral or host"),
    (text(path(rule="encrypted")), "paths[0].vault", "missing"),
    (text(vault() + path(rule="host", vault="v")), "paths[0].vault", "has no meaning with the rule host"),
    (text(path(rule="encrypted", vault="v")), "paths[0].vault", "'v' is no vault of this policy", UNSAID),
    (text(vault(mount="/v") + path(rule="encrypted", vault="v")), "paths[0].vault", "is mounted at '/v'", UNSAID),
    (text(vault(access="mirror") + path(rule="encrypted", vault="v")), "paths[0].vault", "is a mirror", UNSAID),
    (
        text(vault() + path(rule="encrypted", vault="v") + path(path="/q", rule="encrypted", vault="v")),
        "paths[1].vault",
        "'v' appears twice",
        UNSAID,
    ),
    (text(path() + path()), "paths[1].path", "'/p' appears twice", UNSAID),
    (text(path() + written(path="/p/f")), "files[0].path", "'/p/f' lies in '/p'", UNSAID),
    (text(path(path="/v") + vault(mount="/v")), "vaults[0].mount", "'/v' appears twice", UNSAID),
    (text(vault(mount="/a") + path(path="/a/b") + sealed(path="/a/b/c")), "sealed[0].path", "in '/a/b'", UNSAID),
    (text(path(path="/")), "paths[0].path", "wanted an absolute path"),
    (text(path(path="/tmp/x")), "paths[0].path", "/tmp is the enclave's own"),
    # [mesh]
    (text('[mesh]\ntransport = "udp"\n'), "mesh.transport", "got 'udp', wanted tls or wireguard"),
    (text('[mesh]\npeers = ["acme"]\n'), "mesh.peers", "got 'acme', wanted the name of a policy"),
    (text('[mesh]\npeers = ["a/b", "a/b"]\n'), "mesh.peers", "'a/b' appears twice"),
    (text('[mesh]\npeers = ["a/*"]\n'), "mesh.peers", "got 'a/*'"),
    (text('[mesh]\npublish = [{ name = "a" }]\n'), "mesh.publish[0].port", "missing"),
    (text('[mesh]\npublish = [{ name = "a", port = 0 }]\n'), "mesh.publish[0].port", "got 0, wanted 1 to 65535"),
    (
        text('[mesh]\npublish = [{ name = "a", port = 1 }, { name = "b", port = 1 }]\n'),
        "mesh.publish[1].port",
        "1 appears twice",
        UNSAID,
    ),
    (
        text('[mesh]\npublish = [{ name = "a", port = 1 }, { name = "a", port = 2 }]\n'),
        "mesh.publish[1].name",
        "'a' appears twice",
        UNSAID,
    ),
    (text("[mesh]\nopen = true\n"), "mesh.open", "unknown key 'open'"),
    # [[egress]]
    *(
        (text(egress(host=host)), "egress[0].host", "wanted a domain in lower case or an address")
        for host in ("", "*", "*.example", "A.example", "a..b", "-a.b", "a-.b", "a b", "a.b.", "1.2.3", "256.1.1.1")
    ),
    (text(egress(host="1.2.3.04")), "egress[0].host", "wanted a domain in lower case or an address"),
    (text(egress(host="a.0x7f")), "egress[0].host", "wanted a domain in lower case or an address"),
    (text(egress(host="a.example:443")), "egress[0].host", "wanted a domain in lower case or an address"),
    (text(egress(host="::0001")), "egress[0].host", "wanted a domain in lower case or an address", UNSAID),
    (text(egress(host="::ffff:102:304")), "egress[0].host", "wanted a domain in lower case or an address", UNSAID),
    (text(egress(host="fe80::1%eth0")), "egress[0].host", "wanted a domain in lower case or an address"),
    (text(egress(host=".".join(["a" * 60] * 5))), "egress[0].host", "wanted a domain in lower case or an address"),
    (text(egress(port=65536)), "egress[0].port", "got 65536, wanted 1 to 65535"),
    (text(egress(port=None)), "egress[0].port", "missing"),
    (text(egress(ca="any")), "egress[0].ca", "got 'any', wanted system, or a root's digest"),
    (text(egress(ca=None)), "egress[0].ca", "missing"),
    (text("".join(egress(port=port) for port in range(1, 258))), "egress", "got 257 tables, the limit is 256"),
    (
        text("[mesh]\npublish = [" + "".join(f"{{ name = 'a{i}', port = {i} }}," for i in range(1, 66)) + "]\n"),
        "mesh.publish",
        "got 65 services, the limit is 64",
    ),
    (text(egress(ca=PEM.replace("MII", "XXX"))), "egress[0].ca", "holds no certificate that can be read", UNSAID),
    (text(egress(ca=PEM + PEM)), "egress[0].ca", "wanted system, or a root's digest"),
    (text(egress(tls="nobody")), "egress[0].tls", "got 'nobody', wanted enclave or program"),
    *(
        (text(egress(host=host)), "egress[0].host", why, UNSAID)
        for host, why in (
            ("train.acme.mesh", "names in .mesh are those of enclaves"),
            ("0.0.0.0", "wanted the address of one machine"),  # noqa: S104
            ("ff02::1", "wanted the address of one machine"),
            ("10.0.0.7", "an address that enclaves use among themselves"),
            ("198.18.0.2", "an address that enclaves use among themselves"),
        )
    ),
    (text(egress() + egress(ca=KEY)), "egress[1].host", "'a.example' appears twice with port 443", UNSAID),
]


@pytest.mark.parametrize("case", BAD, ids=range(len(BAD)))
def test_what_is_refused_is_named_at_its_key(case):
    bad, key, says, *unsaid = case
    with pytest.raises(PolicyError) as raised:
        parse_policy(bad)
    assert says in raised.value.message
    found = {problem.key: problem for problem in policy_problems(bad)}
    assert key in found, found
    assert says in found[key].error.message
    assert Lines(bad).of(found[key].where) > 1
    if not unsaid:
        assert not is_valid(tomllib.loads(bad), SCHEMA)


@pytest.mark.parametrize(
    ("bad", "hint"),
    [
        (text(person(may=["secret"])), "did you mean secrets?"),
        (text(person(resources=["secret:tokn"]) + secret(name="token")), "did you mean secret:token?"),
        (text(expires="2027-01-01T00:00:00"), "write 2027-01-01T00:00:00Z for UTC, or an offset such as +02:00"),
        (text(program("x", "${HOME}")), "a policy knows secrets only; write $${ for the characters ${"),
        (text(secret(name="a") + program("x", "${secret.b}")), "name it in [[secrets]]; there are: a"),
        (text(egress(host="*.example")), "each host has its own table: a wildcard would reach what nobody named"),
        (text(instance=3), "did you mean instances?"),
    ],
)
def test_a_mistake_is_told_what_to_do(bad, hint):
    with pytest.raises(PolicyError) as raised:
        parse_policy(bad)
    assert raised.value.hint == hint


def test_the_owner_of_one_version_may_be_an_administrator_of_another():
    other = SigningKey.generate()
    parse_policy(document(other, vendor_root=ROOT, more=person(key=ADMIN.public.fingerprint)))


def test_the_examples_of_the_documentation_are_one_policy():
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "policy.md").read_text()
    section = page.partition("\n## What else it may say\n")[2].partition("\n## ")[0]
    head, rest = "", ""
    for block in re.findall(r"^```toml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        policy_table = re.match(r"\[policy\]\n((?:\w.*\n)*)", block)
        head += policy_table[1] if policy_table else ""
        rest += block[policy_table.end() if policy_table else 0 :]
    head = "".join(dict.fromkeys(head.splitlines(keepends=True)))
    whole = text(re.sub(r"sha256:[0-9a-f]+\.\.\.", KEY, rest)).replace("[reference]", f"{head}[reference]")
    policy = parse_policy(whole)
    told = {each.key.partition(".")[0] for each in differences(parse_policy(text()), policy)}
    assert told == {
        "policy",
        "administrators",
        "program",
        "secrets",
        "files",
        "vaults",
        "sealed",
        "paths",
        "mesh",
        "egress",
    }


def test_every_key_and_word_is_in_the_specification():
    page = (Path(__file__).parents[2] / "docs" / "spec" / "cas.md").read_text()
    section = page.partition("## The policy document")[2].partition("\n## ")[0]
    keys: set[str] = set()

    def collect(schema: object) -> None:
        if isinstance(schema, dict):
            keys.update(schema.get("properties", {}) if isinstance(schema.get("properties"), dict) else ())
            keys.update(word for word in schema.get("enum", ()) if isinstance(word, str))
            for each in schema.values():
                collect(each)

    collect({name: part for name, part in SCHEMA["properties"].items() if name != "reference"})
    missing = {key for key in keys if not re.search(rf"[`.\[]{re.escape(key)}[`\]]", section)}
    assert missing == set()
