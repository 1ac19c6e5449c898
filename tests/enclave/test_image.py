"""Container images as programs: what one runs in, and what a hostile one or a changed one does not get."""

from __future__ import annotations

import errno
import json
import stat
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from strongroom.cas.policy.version import parse_policy
from strongroom.cli.main import main
from strongroom.cli.run.verb import boot_config
from strongroom.cli.workspace import SealedVault, entrust, policy_name
from strongroom.enclave import sandbox
from strongroom.enclave.config import BootConfig, VaultMount
from strongroom.enclave.drop import execute
from strongroom.enclave.image import ImageCache, Unpacked, layout_of, with_image
from strongroom.enclave.image_paths import resolved
from strongroom.enclave.measure import Environment, measure
from strongroom.enclave.oci import open_image
from strongroom.enclave.oci_layers import measure_tree
from strongroom.enclave.sandbox import visible
from strongroom.errors import EnclaveError, FormatError, MeasurementError, TamperedError, UsageError
from strongroom.sealed import create_key, open_sealed
from tests.enclave.conftest import Job, World, measured
from tests.enclave.images import Layout, commands, link, member, tar

SCRIPT = b"""
cat /linked/data/in > /out/copy
{
  echo "$0 $1 in $(pwd): $GREETING $EXTRA"
  echo "path $PATH"
  cat /app/conf
  cat /var/cache/kept && echo changed > /var/cache/kept && cat /var/cache/kept
  echo x > /vol/scratch/x && cat /vol/scratch/x
  (echo x > /app/main.sh || echo x > /bin/new || echo x > /new) 2> /tmp/refused || echo read-only
  for path in "$@"; do test -e "$path" && echo "sees $path"; done
  for path in root/etc root/run/strongroom environ maps fd/0; do cat "/proc/1/$path" 2> /tmp/refused; done
  cat /app/count && echo 2 > /app/new && echo replaced
  for name in boots hosts scripts; do "/app/$name" 2> /tmp/refused; echo "$name $?"; done
  test -u /bin/suid || test -g /bin/suid || echo no set-id
} > /out/told
cat /etc/passwd > /out/passwd
cat /proc/self/mountinfo > /out/mounts
cat /etc/hosts > /out/hosts
"""
POLICY = """
[policy]
name = "{name}"
version = 1
owner = "{owner}"
role = "program"
[reference]
tees = ["simulated"]
measurements = ["{measurement}"]
allow_simulated = "{vendor}"
[program]
image = "{image}"
command = [{words}]
[program.environment]
EXTRA = "and ${{secret.word}}"
[[secrets]]
name = "word"
generate = 16
[[files]]
path = "/app/conf"
content = "conf\\n"
[[vaults]]
name = "data"
mount = "/linked/data"
access = "read-only"
[[vaults]]
name = "out"
mount = "/out"
access = "read-write"
[[sealed]]
name = "count"
path = "/app/count"
access = "read-write"
[[paths]]
path = "/vol/scratch"
rule = "ephemeral"
"""


@pytest.fixture(scope="session")
def shell() -> bytes:
    """A layer with a shell."""
    return tar(*commands("sh", "cat"), member("proc"), member("etc/passwd", b"root:x:0:0::/root:/bin/sh"))


def image_of_shell(directory: Path, shell: bytes, script: bytes = SCRIPT, **config: Any) -> Layout:
    layout = Layout(directory)
    layout.config = {
        "Entrypoint": ["sh", "/app/main.sh"],
        "Cmd": ["default"],
        "Env": ["GREETING=hello"],
        "WorkingDir": "/srv/new",
        "Volumes": {"/var/cache": {}, "/vol": {}},
        "User": "app",
        **config,
    }
    program = [
        member("app/main.sh", script, mode=0o700),
        member("bin/suid", b"#!/bin/sh\n", mode=0o6755),
        link("app/boots", "/proc/1/exe"),
        link("app/hosts", "/../../../usr/bin/env"),
        member("app/scripts", b"#!/bin/none\n", mode=0o755),
        member("var/cache/kept", b"kept\n"),
        member("real"),
        # What boot makes of its own goes before what the image has there.
        link("proc", "/app"),
        link("tmp", "/bin"),
        link("vol/scratch", "/run/strongroom/vaults/out"),
        link("dev", "/real"),
        link("etc/hosts", "/app/main.sh"),
        link("linked", "/real"),
    ]
    layout.of(shell, tar(*program))
    return layout


@pytest.fixture(params=["own user", "user namespace"])
def any_user(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, bubblewrap: None) -> str:
    """Launched by root, and as a plain user launches."""
    if request.param == "user namespace":
        monkeypatch.setattr(sandbox, "separate_users", lambda bwrap: False)
    elif not sandbox.separate_users(str(sandbox.bubblewrap())):
        pytest.skip("not root: no user ids of their own")
    return str(request.param)


def sealed_job(world: World, image: Unpacked, *words: str) -> Job:
    """The policy above for an image, with its vaults."""
    data, out = world.seal("data", **{"in": b"sealed\n"}), world.seal("out")
    count = SealedVault.at(world.directory / "count.sealed")
    with open_sealed(count.path, "x", key=create_key(count.key_path), anchor=count.anchor) as file:
        file.write(b"1\n")
        file.commit()
    said = {"owner": world.home.owner().public.fingerprint, "vendor": world.home.vendor().root_digest}
    said["name"] = policy_name("image", [str(world.directory).encode()])
    said |= {"image": image.image.digest, "words": ", ".join(f'"{word}"' for word in words)}
    draft = parse_policy(POLICY.format(measurement="0" * 96, **said))
    assert draft.program is not None
    config = boot_config(draft.name, world.cas, draft.program, draft.vaults, policy=draft, image=image)
    value = measured(config, {}, image.measured()).value
    vaults = {"data": data, "out": out, "count": count}
    with world.owner() as client:
        policy = client.apply(POLICY.format(measurement=value, **said))
        entrust(client, policy, vaults)
    return Job(world, {}, config, policy, vaults)


def test_an_image_is_all_that_a_program_sees(
    world: World, any_user: str, shell: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = world.directory / "beside"  # as an environment below /tmp
    beside.mkdir()
    monkeypatch.setattr(sandbox, "visible", lambda environment: [*visible(environment), beside])
    layout = image_of_shell(world.directory / "image", shell)
    image = ImageCache(world.directory / "images").unpacked(layout.path)
    here = Environment.current()
    hidden = [here.prefix, here.stdlib, here.package, "/usr/bin", "/run/strongroom", "/program", image.tree, beside]
    job = sealed_job(world, image, "given", *map(str, hidden))
    assert job.run(image=image) == (0, "")
    with world.owner() as client:
        out = job.vaults["out"]
        out.anchor.advance(out.anchor.read(), client.anchor(job.policy.name, "out").read())
    with out.open() as opened:
        written = {name: opened.read_bytes(name).decode() for name in ("copy", "told", "passwd", "mounts", "hosts")}
    assert written["copy"] == "sealed\n"
    first, *rest = written["told"].splitlines()
    assert first.startswith("/app/main.sh given in /srv/new: hello and ")
    assert len(first.split()[-1]) == 32
    assert rest == [
        "path /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        *(
            "conf",
            "kept",
            "changed",
            "x",
            "read-only",
            "1",
            "replaced",
            "boots 126",
            "hosts 127",
            "scripts 127",
            "no set-id",
        ),
    ]
    assert ("enclave:x:" in written["passwd"]) == (any_user == "own user")
    assert not any(str(here.prefix) in line.split(" - ")[0] for line in written["mounts"].splitlines())
    assert written["hosts"].startswith("127.0.0.1 localhost")
    assert (image.tree / "var/cache/kept").read_text() == "kept\n"
    assert ("vault", "/linked/data") not in [(name, detail.get("mount")) for name, detail in job.events]
    assert "/real/data" in [detail.get("mount") for name, detail in job.events if name == "vault"]


def test_another_image_and_a_changed_one_are_refused(world: World, bubblewrap: None, shell: bytes) -> None:
    cache = ImageCache(world.directory / "images")
    image = cache.unpacked(image_of_shell(world.directory / "image", shell).path)
    other = cache.unpacked(image_of_shell(world.directory / "other", shell, b"cat /linked/data/in\n").path)
    job = sealed_job(world, image, "given")
    with pytest.raises(EnclaveError, match="image: got another one"):
        job.launch(image=other)
    disguised = replace(job.config, image=other.image.digest)
    approved = measure(job.config, {}, image=image.measured())
    differing = measure(disguised, {}, platform=approved.platform, image=other.measured())
    assert differing.registers["rtmr3"] != approved.registers["rtmr3"]
    as_ever = measure(job.config, {}, platform=approved.platform, image=other.measured())
    assert as_ever.registers["rtmr3"] != approved.registers["rtmr3"]
    script = image.tree / "app/main.sh"
    script.chmod(0o755)
    script.write_bytes(b"cat /linked/data/in > /dev/stderr\n")
    with pytest.raises(TamperedError, match="is not as it was unpacked"):
        job.launch(image=image)
    image.tree.with_name("measurement").write_text(measure_tree(image.tree).digest.hex())
    with pytest.raises(MeasurementError):
        job.launch(image=image).wait()
    assert "attested" not in [name for name, _ in job.events]


FOREIGN = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 0x2A, 1, 0, 0, 0, 0, 64, 56, 0, 64, 0, 0)

# What an interpreter might still import when the image is its root already, where this one has its library.
PLANTED = [
    member(f"{str(Environment.current().stdlib)[1:]}/{name}.py", b"import os; os._exit(99)")
    for name in ("warnings", "traceback", "linecache", "tokenize", "locale", "re", "encodings/ascii")
]


def test_an_entry_point_that_cannot_be_run(world: World, bubblewrap: None) -> None:
    layout = Layout(world.directory / "image", {"Entrypoint": ["run"], "WorkingDir": "/srv/new"})
    layout.of(tar(member("bin"), member("bin/run", FOREIGN, mode=0o755), *PLANTED))
    image = ImageCache(world.directory / "images").unpacked(layout.path)
    log = world.directory / "stderr"
    with log.open("wb") as stream:
        assert sealed_job(world, image, "x").launch(image=image, stderr=stream.fileno()).wait() == 126
    assert log.read_text() == "strongroom: error: command: run: exec format error\n"


def test_a_program_is_looked_up_on_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(FOREIGN)
    (tmp_path / "run").chmod(0o755)
    found = {"PATH": f"{tmp_path}/run:/nowhere:{tmp_path}:/nowhere"}  # a file is no directory, and is passed over
    assert execute(["run"], found).errno == errno.ENOEXEC
    assert execute([f"{tmp_path}/run"], {}).errno == errno.ENOEXEC
    assert execute(["run"], {"PATH": "/nowhere"}).errno == errno.ENOENT
    (tmp_path / "run").chmod(0o644)
    assert execute(["run"], found).errno == errno.EACCES


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/data", "data"),
        ("/a/b/c", "a/b/c"),
        ("/absolute/x", "etc/x"),
        ("/absolute", "absolute"),  # what is put there hides the link
        ("/relative/x", "x"),
        ("/upwards/x", "etc/passwd/x"),
        ("/there/and/back", "etc/and/back"),
        ("/there", "there"),
        ("/etc/passwd/x", "leads through /etc/passwd, which is a file"),
        ("/loop/x", "leads through more than 40 links"),
        ("/kernel/self/x", "where nothing can be mounted"),
        ("/kernel/self", "where nothing can be mounted"),
        ("/devices/x", "where nothing can be mounted"),
        ("/root/x", "x"),
        ("/root/..", "where nothing can be mounted"),
    ],
)
def test_no_link_of_an_image_leads_out_of_it(tmp_path: Path, path: str, wanted: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("")
    links = {"absolute": "/etc", "relative": "etc/../", "upwards": "../../../etc/passwd", "there": "/absolute"}
    links |= {"loop": "loop", "kernel": "/proc", "devices": "/tmp/../dev", "root": "/"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    if " " not in wanted and path != "/upwards/x":
        assert "/".join(resolved(tmp_path, path)) == wanted
        return
    with pytest.raises(EnclaveError, match=wanted if " " in wanted else "which is a file"):
        resolved(tmp_path, path)


def test_the_configuration_of_an_image_is_taken_as_engines_take_it(tmp_path: Path) -> None:
    volumes = {"/var/db": {}, "/var/db/inner": {}, "/data": {}, "/data/x": {}, "/logs/": {}}
    layout = Layout(tmp_path / "image", {"Entrypoint": ["app", "${x}"], "Cmd": ["--all"], "Volumes": volumes})
    layout.config["Env"] = ["A=1", "PATH=/opt/bin"]
    image = open_image(layout.of(tar()))
    plain = BootConfig("m", "a/b", "c", "program", environment={"A": "2"}, vaults=(VaultMount("d", "/data", "mirror"),))
    with pytest.raises(UsageError, match="mirror: an image has no Strongroom in it"):
        with_image(plain, image)
    plain = replace(plain, vaults=(VaultMount("d", "/data", "read-only"),))
    config = with_image(plain, image)
    assert config.command == ("app", "$${x}", "--all")
    assert with_image(replace(plain, command=("--one", "two")), image).command == ("app", "$${x}", "--one", "two")
    assert config.environment == {"A": "2", "PATH": "/opt/bin"}
    assert (config.image, config.directory, config.volumes) == (image.digest, "/", ("/logs", "/var/db"))
    assert BootConfig.from_bytes(config.to_bytes()) == config
    bare = open_image(Layout(tmp_path / "bare", {}).of(tar()))
    with pytest.raises(UsageError, match="image: has no command of its own"):
        with_image(plain, bare)
    assert with_image(replace(plain, command=("/app",)), bare).command == ("/app",)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"Volumes": ["/x"]}, "config.Volumes"),
        ({"Volumes": {"x/y": {}}}, "config.Volumes"),
        ({"Volumes": {"/../x": {}}}, "config.Volumes"),
        ({"Volumes": {f"/{n}": {} for n in range(65)}}, "config.Volumes"),
        ({"User": 0.5}, "config.User"),
        ({"User": "a\nb"}, "config.User"),
    ],
)
def test_a_configuration_that_nothing_can_be_made_of(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        open_image(Layout(tmp_path / "image", config).of(tar()))


def test_an_image_for_another_machine_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    layout.index(layout.manifest(tar(), machine="s390x"))
    with pytest.raises(UsageError, match="image: built for 'linux', 's390x'"):
        open_image(layout.path)


def test_the_cache_holds_what_was_unpacked(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    layout.of(tar(member("bin/app", b"x", mode=0o700), member("secret", b"y", mode=0o600), member("d", mode=0o711)))
    cache = ImageCache(tmp_path / "images")
    (tmp_path / "images").mkdir(mode=0o700)
    killed = tmp_path / "images" / ".new-999999999-x"
    killed.mkdir()
    first = cache.unpacked(layout.path)
    assert not killed.exists()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (first.tree, *first.tree.rglob("*"))}
    assert modes == {"tree": 0o755, "bin": 0o755, "app": 0o755, "secret": 0o644, "d": 0o755}
    assert first.measured().digest == measure_tree(first.tree).digest
    (layout.path / "index.json").unlink()
    again = cache.found(first.image.digest)
    assert (again.image.command, again.tree) == (first.image.command, first.tree)
    [configuration] = [
        path for path in again.image.layout.rglob("*") if path.is_file() and b"diff_ids" in path.read_bytes()
    ]
    configuration.write_bytes(configuration.read_bytes().replace(b"/bin/app", b"/bin/bad"))
    with pytest.raises(TamperedError, match="its digest is"):
        cache.found(first.image.digest)
    with pytest.raises(UsageError, match="is not unpacked here"):
        cache.found("sha256:" + "0" * 64)
    (tmp_path / "images").chmod(0o711)
    other = Layout(tmp_path / "other", {"Cmd": ["x"]})
    with pytest.raises(EnclaveError, match="only this user can enter"):
        cache.unpacked(other.of(tar()))


def test_a_layout_may_be_named_with_a_tag(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert layout_of(f"{tmp_path}/a:b") == (tmp_path / "a:b", "")
    assert layout_of(f"{tmp_path}/a:b:lab/app:v1") == (tmp_path / "a:b", "lab/app:v1")
    with pytest.raises(UsageError, match=r"--image: .* is no directory"):
        layout_of(f"{tmp_path}/c:v1")


def test_measuring_and_running_by_command(
    world: World, bubblewrap: None, shell: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRONGROOM_HOME", str(world.home.path))
    monkeypatch.chdir(world.directory)
    monkeypatch.setattr("strongroom.cli.run.verb._pass_signals_on", lambda enclave: None)
    layout = image_of_shell(world.directory / "image", shell, b"echo told > /out/told; cat /program/more $1\n")
    (world.directory / "more").write_text("more\n")
    words = ["--image", str(layout.path), "--include", "more"]
    assert main(["run", *words, "--", "/app/main.sh"]) == 0
    assert capfd.readouterr().out.startswith("more\necho told")
    policy = world.directory / "policy.toml"
    digest = open_image(layout.path).digest
    zeros = "sha256:" + "0" * 64
    said = {"owner": zeros, "vendor": zeros, "image": digest, "words": '"x"', "name": "acme/image"}
    policy.write_text(POLICY.format(measurement="0" * 96, **said))
    assert main(["measure", "--policy", str(policy), "--json"]) == 0  # unpacked by now
    parts = {part["part"]: part["digest"] for part in json.loads(capfd.readouterr().out)["parts"]}
    assert main(["image", str(layout.path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["measurement"] == parts["program"]
    assert main(["gramine", str(policy), "--output", str(world.directory / "g")]) != 0
    assert "program.image" in capfd.readouterr().err
