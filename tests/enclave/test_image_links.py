"""What links and volumes of a container image do to the places that are the policy's: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strongroom.cas.policy.version import parse_policy
from strongroom.cli.run.verb import boot_config
from strongroom.cli.workspace import SealedVault, entrust, policy_name
from strongroom.enclave.config import BootConfig
from strongroom.enclave.image import ImageCache, Unpacked, with_image
from strongroom.enclave.image_paths import check_nesting
from strongroom.enclave.oci import open_image
from strongroom.errors import EnclaveError
from strongroom.sealed import create_key, load_key, open_sealed
from tests.enclave.conftest import Job, World, measured
from tests.enclave.images import Layout, commands, link, member, tar

HEAD = """
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
"""


def job_of(world: World, image: Unpacked, tables: str, vaults: dict[str, SealedVault], **files: Path) -> Job:
    """The program of an image under a policy with these tables."""
    said = {"owner": world.home.owner().public.fingerprint, "vendor": world.home.vendor().root_digest}
    said["name"] = policy_name("links", [str(world.directory).encode()])
    said["image"] = image.image.digest
    given = {name.replace("_", "."): path for name, path in files.items()}
    tables = f"files = {sorted(given)}\n{tables}"
    draft = parse_policy(HEAD.format(measurement="0" * 96, **said) + tables)
    assert draft.program is not None
    config = boot_config(draft.name, world.cas, draft.program, draft.vaults, policy=draft, image=image)
    value = measured(config, given, image.measured()).value
    with world.owner() as client:
        policy = client.apply(HEAD.format(measurement=value, **said) + tables)
        entrust(client, policy, vaults)
    return Job(world, given, config, policy, vaults)


def image_of(world: World, script: str, *more: Any, **config: Any) -> Unpacked:
    layout = Layout(world.directory / "image", {"Entrypoint": ["sh", "/app/main.sh"], **config})
    tools = commands("sh", "cat", "ln", "mv", "mkdir")
    layout.of(tar(*tools, member("app/main.sh", script.encode(), mode=0o755), *more))
    return ImageCache(world.directory / "images").unpacked(layout.path)


def sealed_file(world: World, name: str, content: bytes) -> SealedVault:
    made = SealedVault.at(world.directory / f"{name}.sealed")
    with open_sealed(made.path, "x", key=create_key(made.key_path), anchor=made.anchor) as file:
        file.write(content)
        file.commit()
    return made


SHOWN = """
[[secrets]]
name = "token"
generate = 16
[[files]]
path = "/conf/token"
content = "${secret.token}"
[[sealed]]
name = "model"
path = "/models/model"
access = "read-only"
[[paths]]
path = "/exchange"
rule = "host"
"""


@pytest.mark.parametrize("led", ["conf", "models"])
def test_a_link_of_an_image_leads_nothing_into_a_directory_of_the_host_s(
    world: World, bubblewrap: None, led: str
) -> None:
    image = image_of(world, "true\n", member("exchange"), link(led, "/exchange"))
    host = world.directory / "host"
    host.mkdir()
    job = job_of(world, image, SHOWN, {"model": sealed_file(world, "model", b"weights")})
    with pytest.raises(EnclaveError, match=rf"image: its links lead /{led}/\w+ to /exchange/\w+, and /exchange to"):
        job.launch(image=image, hosts={"/exchange": host}).wait()
    assert not list(host.iterdir())


@pytest.mark.parametrize(
    ("own", "volumes", "apart"),
    [
        (("/data", "/data/private"), (), "/data/private"),  # honest, and led away from what it lies in
        (("/mnt/data", "/data/private"), (), "/data/private"),
        (("/mnt/data/x", "/data/x"), (), "/data/x"),
        (("/data/private",), ("/mnt",), "/data/private"),
        (("/data/private",), ("/data",), "/data/private"),
        (("/data/private", "/mnt"), (), "/data/private"),
        (("/data/private", "/database", "/mnt/data/private2"), (), ""),
        (("/mnt/data", "/mnt/data/private"), ("/mnt",), ""),
        (("/x",), ("/data/a", "/mnt/data/a"), ""),
    ],
)
def test_what_lies_in_which_is_not_for_links_to_say(
    tmp_path: Path, own: tuple[str, ...], volumes: tuple[str, ...], apart: str
) -> None:
    (tmp_path / "data").symlink_to("/mnt/data")
    if not apart:
        check_nesting(tmp_path, own, volumes)
        return
    with pytest.raises(EnclaveError, match=f"image: its links lead .*{apart}") as refused:
        check_nesting(tmp_path, own, volumes)
    assert refused.value.hint


MOVING = """
cat /program/conf.txt
(echo x > /program/conf.txt) 2> /tmp/refused || echo read-only
echo deposited > /run/deposits/status
mv /run/deposits /run/before
ln -s /proc/1 /run/deposits
mv /vol/d /vol/e
ln -s /proc/1 /vol/d
mv /vol/f/again /vol/f/moved
mkdir /vol/f/again
"""
MOVED = """
[[secrets]]
name = "status"
deposited = true
[[sealed]]
name = "count"
path = "/vol/d/status"
access = "read-write"
[[sealed]]
name = "again"
path = "/vol/f/again"
access = "read-write"
"""


def test_volumes_of_an_image_give_a_program_nothing_that_is_boot_s(world: World, bubblewrap: None) -> None:
    volumes: dict[str, Any] = {"/program": {}, "/run": {}, "/vol": {}}
    image = image_of(world, MOVING, member("program/conf.txt", b"the image's\n"), Volumes=volumes)
    conf = world.directory / "conf.txt"
    conf.write_text("the policy's\n")
    vaults = {name: sealed_file(world, name, b"1\n") for name in ("count", "again")}
    job = job_of(world, image, MOVED, vaults, conf_txt=conf)
    assert job.run(image=image) == (0, "the policy's\nread-only\n")
    notices = [detail["text"] for name, detail in job.events if name == "notice"]
    assert [text for text in notices if text.startswith("secret")] == ["secret status: deposited, 10 bytes"]
    assert "sealed file again: left as it was, the program has removed it" in notices
    with world.owner() as client:
        for name, made in vaults.items():
            made.anchor.advance(made.anchor.read(), client.anchor(job.policy.name, name).read())
            with open_sealed(made.path, "r", key=load_key(made.key_path), anchor=made.anchor) as file:
                assert file.read() == b"1\n"


def test_a_volume_of_an_image_is_none_where_the_enclave_has_its_own(tmp_path: Path) -> None:
    volumes: dict[str, Any] = {"/program": {}, "/program/x": {}, "/run": {}, "/run/deposits/x": {}, "/programs": {}}
    image = open_image(Layout(tmp_path / "image", {"Cmd": ["x"], "Volumes": volumes}).of(tar()))
    assert with_image(BootConfig("m", "a/b", "c", "program"), image).volumes == ("/programs", "/run")
