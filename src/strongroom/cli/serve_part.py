"""`strongroom serve --part`: one part of a model whose front door is on another machine."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from strongroom.cas.client.address import CasAddress
from strongroom.channel import bind
from strongroom.cli import output
from strongroom.cli.remembered import known_digests
from strongroom.cli.serve_fleet import Fleet, Role
from strongroom.cli.serve_roles import PART_FILE, RULE, VAULT, launcher, part_config
from strongroom.cli.serve_supervisor import Supervisor, Version
from strongroom.cli.workspace import Home
from strongroom.enclave.machine.kind import Machine
from strongroom.errors import FormatError, UsageError
from strongroom.serve.pipeline.document import Pipeline
from strongroom.serve.wire import a_name, an_object, read_json

_MAX_FILE = 1 << 20


@dataclass(frozen=True)
class PartDirectory:
    """What another machine needs to run a part: the sealed model, without its key, and what is launched.

    Nothing in it is secret, or believed: the CAS appraises what was launched, and the enclave checks the model.
    """

    path: Path
    pipeline: Pipeline
    number: int
    address: CasAddress
    reference: str

    @classmethod
    def read(cls, path: Path) -> PartDirectory:
        """Raises UsageError if it is none, FormatError if it says something else."""
        try:
            with (path / PART_FILE).open("rb") as stream:
                raw = stream.read(_MAX_FILE + 1)
        except OSError as error:
            raise UsageError(
                f"--part: {path / PART_FILE}: {(error.strerror or str(error)).lower()}",
                hint="`strongroom serve --plan FILE --at PART=HOST:PORT` makes the directory, copy it whole",
            ) from None
        if len(raw) > _MAX_FILE:
            raise FormatError(f"{path / PART_FILE}: longer than {_MAX_FILE} bytes")
        fields = ("format", "version", "part", "pipeline", "cas", "cas_reference")
        said = an_object(read_json(raw, PART_FILE), PART_FILE, required=fields)
        version, text = said["version"], said["pipeline"]
        if said["format"] != "strongroom-part" or type(version) is not int or version != 1 or not isinstance(text, str):
            raise FormatError(f"{path / PART_FILE}: is no part of a pipeline, version 1")
        pipeline, number = Pipeline.parse(text), said["part"]
        if type(number) is not int or not 0 < number <= len(pipeline.parts):
            raise FormatError(f"{path / PART_FILE}: part: wanted 1 to {len(pipeline.parts)}")
        cas = an_object(said["cas"], "cas", required=("url", "root"))
        address = CasAddress(a_name(cas["url"], "cas: url"), a_name(cas["root"], "cas: root"))
        if not isinstance(said["cas_reference"], str):
            raise FormatError(f"{path / PART_FILE}: cas_reference: wanted a string")
        return cls(path, pipeline, number, address, said["cas_reference"])


def start_part(
    directory: PartDirectory,
    home: Home,
    host: str,
    port: int,
    *,
    resources: ExitStack,
    cas_url: str | None = None,
    machine: Machine | None = None,
    debug: bool = False,
    standby: bool = False,
) -> tuple[Supervisor, int]:
    """Launch a part on this machine.

    Args:
        host, port: where it is to listen.
        resources: closes what this opens, once all have ended.
        cas_url: where its CAS answers, seen from here; None for what the directory says.
        standby: launch one enclave more than work.
        machine, debug: as `start_service` has them.

    Returns:
        What runs it, and the port.
    """
    address = CasAddress(cas_url or directory.address.url, directory.address.cas_root)
    pipeline, number = directory.pipeline, directory.number
    with known_digests(home):
        config, measured, _ = part_config(address, pipeline, number, directory.reference)
    listener = resources.enter_context(bind(host, port))
    count = pipeline.parts[number - 1].replicas + standby
    places = {RULE.name: directory.path / VAULT}
    role = Role(f"part-{number}", config, measured, None, places, listener, {}, count)
    supervisor = Supervisor(say=output.note)
    launches = launcher(home, address, machine, debug=debug)
    fleet = Fleet([role], launches, say=output.note, on_change=supervisor.changed)
    supervisor.start(Version(fleet, pipeline.digest, settle=lambda: None, abandon=lambda: None))
    return supervisor, listener.getsockname()[1]
