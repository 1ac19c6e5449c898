"""A home with a CAS, and a way to run small programs in enclaves of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.policy.version import Program, VaultRule
from strongroom.cli.remembered import load_digests, save_digests
from strongroom.cli.run.verb import boot_config
from strongroom.cli.workspace import Home, SealedVault, apply_development_policy, entrust, policy_name
from strongroom.enclave import sandbox
from strongroom.enclave.compiled import Compiled, sources_of_boot
from strongroom.enclave.config import DEALER_ENTRY, PROGRAM_ENTRY, SANDBOX, SERVICE_ENTRY, BootConfig
from strongroom.enclave.launch import Enclave, launch
from strongroom.enclave.measure import KNOWN, Measurement, Platform, measure
from tests.homes import COMPILED, KEY, Remembered

DATA = VaultRule("data", "/data", "read-only")
OUT = VaultRule("out", "/out", "read-write")


_known: list[Measurement] = []
_code: dict[Path, Path | None] = {}  # compiled, by the home that keeps it


def known_platform(config) -> Platform | None:
    """As this process has measured it once, where the command adds nothing to it: looking at tens of thousands of files
    takes as long as the rest of a launch. Nor are they looked at again when the program ends, as a verb's run does."""
    alone = bool(config.image) or (config.command[0] in ("python", "python3") and config.tools is None)
    return Platform(_known[0].platform) if alone and _known else None


def measured(config, files, image=None) -> Measurement:
    """As `measure` does it, with the known platform."""
    return measure(config, files, image=image, platform=known_platform(config))


def know_platform(home: Home) -> None:
    """Measure it, and compile PyTorch and what boot imports, as first runs in a home do: else each enclave does."""
    _known.append(measure(BootConfig(PROGRAM_ENTRY, "a/b", "", "program", ("python",)), {}))
    KNOWN.grown = True
    save_digests(home)
    kept = Compiled(home.path / COMPILED, (home.path / KEY).read_bytes(), KNOWN)
    sources = {entry.path: entry.sha256 for part in _known[0].platform for entry in part.entries}
    for module in (PROGRAM_ENTRY, SERVICE_ENTRY, DEALER_ENTRY, "torch"):
        with sources_of_boot(module) as told:
            kept.add(told(), sources, seconds=600)
    _code[home.path] = kept.checked()


@dataclass
class Job:
    """A program, approved by a policy of its own."""

    world: World
    files: dict[str, Path]
    config: Any
    policy: Any
    vaults: dict[str, SealedVault]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def launch(self, **options: Any) -> Enclave:
        options.setdefault("cas", self.world.cas)
        options.setdefault("files", self.files)
        options.setdefault("platform", known_platform(self.config))
        options.setdefault("compiled", _code.get(self.world.home.path) if self.config.isolation == SANDBOX else None)
        files = options.pop("files")
        if "machine" not in options:
            options.setdefault("vendor", self.world.home.vendor())
        return launch(
            self.config,
            files,
            vaults={name: sealed.path for name, sealed in self.vaults.items()},
            on_event=lambda name, detail: self.events.append((name, detail)),
            **options,
        )

    def run(self, **options: Any) -> tuple[int, str]:
        """Exit status and standard output."""
        log = self.world.directory / "stdout"
        with log.open("wb") as stream:
            status = self.launch(stdout=stream.fileno(), **options).wait()
        return status, log.read_text()


@dataclass
class World:
    directory: Path
    home: Home
    cas: CasAddress

    def owner(self) -> OwnerClient:
        return OwnerClient(self.cas.url, cas_root=self.cas.cas_root, owner=self.home.owner())

    def seal(self, name: str, **files: bytes) -> SealedVault:
        sealed = SealedVault.at(self.directory / f"{name}.vault")
        with sealed.create() as opened:
            for path, content in files.items():
                opened.write_bytes(path, content)
            opened.commit()
        return sealed

    def job(self, source: str, *arguments: str, rules: tuple[VaultRule, ...] = (), **options: Any) -> Job:
        """Approve `source` to run with vaults by these rules."""
        script = self.directory / "job.py"
        script.write_text(source)
        return self.job_of(("python", "job.py", *arguments), {"job.py": script}, rules=rules, **options)

    def job_of(
        self, command: tuple[str, ...], files: dict[str, Path], *, rules: tuple[VaultRule, ...] = (), **options: Any
    ) -> Job:
        """Approve a command made of these files."""
        image = options.pop("image", None)
        digest = image.image.digest if image else ""
        variables, tools = options.pop("environment", {}), options.pop("tools", None)
        program = Program(command, tuple(sorted(files)), variables, digest, tools)
        vaults = options.pop("vaults", {})
        contents = [path.read_bytes() for path in files.values()]
        name = policy_name("job", [str(self.directory).encode(), repr(command).encode(), *contents])
        config = boot_config(name, self.cas, program, rules, image=image)
        content = {
            "name": name,
            "role": "program",
            "owner": self.home.owner().public.fingerprint,
            "measurement": measured(config, files, image.measured() if image else None).value,
            "vendor_root": self.home.vendor().root_digest,
            "program": program,
            "vaults": rules,
        }
        with self.owner() as client:
            policy = apply_development_policy(client, **(content | options))
            entrust(client, policy, vaults)
        return Job(self, files, config, policy, vaults)


@pytest.fixture(scope="session")
def home_and_cas(tmp_path_factory, remembered: Remembered):
    home = Home.open(tmp_path_factory.mktemp("home"))
    with remembered.grown(home.path):
        load_digests(home)
        know_platform(home)
    with home.cas() as cas:
        yield home, cas


@pytest.fixture
def world(request, tmp_path, home_and_cas):
    # A configuration is measured for one kind of isolation, so that comes first.
    if "any_sandbox" in request.fixturenames:
        request.getfixturevalue("any_sandbox")
    return World(tmp_path, *home_and_cas)


@pytest.fixture(params=["bubblewrap", "process"])
def any_sandbox(request, monkeypatch):
    """Both ways in which a simulated enclave may run; the first is skipped, aloud, where it cannot."""
    if request.param == "process":
        monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    elif sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    return request.param


@pytest.fixture
def bubblewrap():
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
