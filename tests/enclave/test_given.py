"""What a program finds besides its vaults: secrets in arguments, variables and files, sealed files, deposits."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace

import pytest

from strongroom.cas.policy.grant_files import GrantRequest
from strongroom.cas.policy.grants import SignedGrant
from strongroom.cas.policy.version import parse_policy
from strongroom.cli.main import main
from strongroom.cli.run.verb import boot_config, check_launchable
from strongroom.cli.workspace import SealedVault, entrust
from strongroom.enclave.config import PROCESS, PROGRAM_ENTRY, BootConfig, FileMount, VaultMount
from strongroom.enclave.enforce import check_enforced
from strongroom.enclave.gramine import GRAMINE_ENTRY
from strongroom.errors import EnclaveError
from strongroom.sealed import create_key, load_key, open_sealed
from tests.enclave.conftest import Job, measured

PROGRAM = """
import hashlib, json, os, pathlib, stat, sys
conf = pathlib.Path("/secrets/db.conf")
state = pathlib.Path("/state/count")
told = {
    "argv": sys.argv[1:],
    "env": os.environ["URL"],
    "file": hashlib.sha256(conf.read_bytes()).hexdigest(),
    "mode": oct(stat.S_IMODE(conf.stat().st_mode)),
    "model": pathlib.Path("/models/m.bin").read_bytes().decode(),
    "state": state.read_text(),
    "scratch": os.listdir("/scratch"),
    "patients": pathlib.Path("/patients/all").read_text(),
}
state.write_text("2")
pathlib.Path("/scratch/x").write_text("")
pathlib.Path("/out/cache/x").write_text("")
pathlib.Path("/out/made").write_text("made")
pathlib.Path("/run/deposits/found").write_text("gold")
pathlib.Path("/run/deposits/stray").symlink_to("/secrets/db.conf")
print(json.dumps(told))
"""
POLICY = """
[policy]
name = "acme/given"
version = 1
owner = "{owner}"
role = "program"
purpose = "try it"
[reference]
tees = ["simulated"]
measurements = ["{measurement}"]
allow_simulated = "{vendor}"
[program]
command = ["python", "job.py", "--password=${{secret.db}}", "$${{plain}}"]
files = ["job.py"]
environment = {{ URL = "db://u:${{secret.db}}@host" }}
[[secrets]]
name = "db"
[[secrets]]
name = "found"
deposited = true
[[files]]
path = "/secrets/db.conf"
content = "password=${{secret.db}}\\n"
mode = "0440"
[[sealed]]
name = "model"
path = "/models/m.bin"
access = "read-only"
[[sealed]]
name = "state"
path = "/state/count"
access = "read-write"
[[paths]]
path = "/scratch"
rule = "ephemeral"
[[paths]]
path = "/out/cache"
rule = "ephemeral"
[[paths]]
path = "/out"
rule = "encrypted"
vault = "out"
[[vaults]]
name = "out"
access = "read-write"
freshness = "grouped"
[[vaults]]
name = "patients"
mount = "/patients"
access = "read-only"
from = "hospital/given"
"""
HOSPITAL = """
[policy]
name = "hospital/given"
version = 1
owner = "{owner}"
role = "program"
[reference]
tees = ["simulated"]
measurements = ["{measurement}"]
allow_simulated = "{vendor}"
[[vaults]]
name = "patients"
access = "read-write"
"""
# What a template must not look at again, and no program may see as anything but these bytes.
SECRET = "${secret.db}{vault:x}é"


def sealed_file(world, name, content):
    sealed = SealedVault.at(world.directory / f"{name}.sealed")
    key = create_key(sealed.key_path)
    with open_sealed(sealed.path, "x", key=key, anchor=sealed.anchor) as file:
        file.write(content)
    return sealed


def test_a_program_finds_secrets_and_sealed_files_where_its_policy_says(world, bubblewrap, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(PROGRAM)
    files = {"job.py": script}
    values = {"owner": world.home.owner().public.fingerprint, "vendor": world.home.vendor().root_digest}
    draft = parse_policy(POLICY.format(**values, measurement="0" * 96))
    config = boot_config(draft.name, world.cas, draft.program, draft.vaults, policy=draft)
    policy = parse_policy(POLICY.format(**values, measurement=measured(config, files).value))
    things = {"model": sealed_file(world, "model", b"weights"), "state": sealed_file(world, "state", b"1")}
    things["out"] = world.seal("out")
    patients = {"patients": world.seal("patients", all=b"ann, bob")}
    with world.owner() as client:
        hospital = client.apply(HOSPITAL.format(**values, measurement="0" * 96))
        entrust(client, hospital, patients)
        client.apply(policy.text)
        grant = GrantRequest.of(policy, hospital.name).grant(expires=1 << 33, serial=1)
        client.put_grant(SignedGrant(grant).signed_by(world.home.owner(), hospital))
        client.put_secret(policy.name, "db", SECRET.encode())
        entrust(client, policy, things)
        job = Job(world, files, config, policy, things | patients)
        # What cannot be deposited fails the run, and costs nothing else of it.
        with pytest.raises(EnclaveError, match="'stray' is no secret"):
            job.run()
        told = json.loads((tmp_path / "stdout").read_text())
        assert told["argv"] == [f"--password={SECRET}", "${plain}"]
        assert told["env"] == f"db://u:{SECRET}@host"
        assert told["file"] == hashlib.sha256(f"password={SECRET}\n".encode()).hexdigest()
        assert (told["mode"], told["model"], told["state"], told["scratch"]) == ("0o440", "weights", "1", [])
        assert told["patients"] == "ann, bob"
        # Nothing that the host sees has a value in it.
        assert SECRET not in json.dumps([detail for _, detail in job.events], ensure_ascii=False)
        # The state was sealed again, under the CAS's anchor.
        anchor = client.anchor(policy.name, "state")
        with open_sealed(things["state"].path, key=load_key(things["state"].key_path), anchor=anchor) as file:
            assert file.read() == b"2"
        # So are the outputs; their lineage names what was read, and holds templates.
        things["out"].anchor.advance(things["out"].anchor.read(), client.anchor(policy.name, "out").read())
        with things["out"].open() as opened:
            assert opened.files() == ["made", "made.lineage.json"]  # nothing of what was ephemeral
            envelope = json.loads(opened.read_bytes("made.lineage.json"))
        statement = base64.b64decode(envelope["payload"]).decode()
        assert SECRET not in statement and "${secret.db}" in statement
        read = json.loads(statement)["predicate"]["buildDefinition"]["resolvedDependencies"]
        assert [each["name"] for each in read] == ["out", "patients", "model", "state"]
        deposited = [json.loads(e["detail"]) for e in client.log() if e["event"] == "deposited"]
        own = policy.reference.measurements[0]  # others of this owner's policies have deposited too
        assert [each["name"] for each in deposited if each["measurement"] == own] == ["found"]


CONFIG = BootConfig(
    "m",
    "a/b",
    "sha256:" + "0" * 64,
    "program",
    ("a",),
    vaults=(VaultMount("data", "/data", "read-only"),),
    files=(FileMount("/secrets/a", "x" * 100_000, 0o400),),
    ephemeral=("/scratch",),
)


def test_a_boot_configuration_holds_long_files():
    assert BootConfig.from_bytes(CONFIG.to_bytes()) == CONFIG


def test_what_an_enclave_was_measured_with_must_do_what_the_policy_says():
    check_enforced(CONFIG, [("/scratch", "ephemeral", ""), ("/data", "encrypted", "data")], ())
    for path, rule, vault in (
        ("/other", "ephemeral", ""),
        ("/data", "encrypted", "other"),
        ("/data", "authenticated", "data"),
        ("/host", "host", ""),
    ):
        with pytest.raises(EnclaveError, match="paths"):
            check_enforced(CONFIG, [(path, rule, vault)], ())
    check_enforced(
        replace(CONFIG, ephemeral=("/data/cache",)),
        [("/data", "encrypted", "data"), ("/data/cache", "ephemeral", "")],
        (),
    )
    with pytest.raises(EnclaveError, match="lies in /data, where this launcher shows the host's"):
        check_enforced(CONFIG, [("/data", "host", ""), ("/data/in", "ephemeral", "")], ())
    with pytest.raises(EnclaveError, match="the policy does not say so"):
        check_enforced(replace(CONFIG, host=("/shared",)), [], ())
    network, program = ("mesh", "mesh.publish", "egress"), replace(CONFIG, entry=PROGRAM_ENTRY)
    check_enforced(program, [], network)
    for config, key in (
        *((replace(program, isolation=PROCESS), key) for key in network),
        *((replace(program, entry=GRAMINE_ENTRY), key) for key in network),
        (replace(program, role="service"), "egress"),
        (program, "another"),
    ):
        with pytest.raises(EnclaveError, match=f"{key}: this launcher cannot enforce it"):
            check_enforced(config, [], (key,))


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ('[[paths]]\npath = "/h"\nrule = "host"\n[[paths]]\npath = "/h/in"\nrule = "ephemeral"\n', "paths.path"),
    ],
)
def test_a_policy_that_cannot_be_enforced_is_not_run(more, key, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    text = (
        f'[policy]\nname = "acme/a"\nversion = 1\nowner = "sha256:{"0" * 64}"\nrole = "program"\n'
        f'[reference]\ntees = ["simulated"]\nmeasurements = ["{"0" * 96}"]\nallow_simulated = "sha256:{"0" * 64}"\n'
        f'[program]\ncommand = ["true"]\n{more}'
    )
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(EnclaveError, match=key):
        check_launchable(parse_policy(text))
    assert main(["run", "--policy", str(tmp_path / "policy.toml")]) == EnclaveError.exit_code
    assert f"error: {key}" in capsys.readouterr().err
