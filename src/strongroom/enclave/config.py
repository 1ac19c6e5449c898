"""The boot configuration: what an enclave is launched to do. All of it is measured, so none of it is trusted before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.enclave.fixed_paths import (
    BOOT_PYCACHE as BOOT_PYCACHE,
)
from strongroom.enclave.fixed_paths import (
    COMPILED_DIRECTORY as COMPILED_DIRECTORY,
)
from strongroom.enclave.fixed_paths import (
    DEPOSITS_DIRECTORY as DEPOSITS_DIRECTORY,
)
from strongroom.enclave.fixed_paths import (
    HOSTS_DIRECTORY as HOSTS_DIRECTORY,
)
from strongroom.enclave.fixed_paths import (
    IMAGE_DIRECTORY as IMAGE_DIRECTORY,
)
from strongroom.enclave.fixed_paths import (
    MIRROR_DIRECTORY as MIRROR_DIRECTORY,
)
from strongroom.enclave.fixed_paths import (
    MOUNTED_DIRECTORY as MOUNTED_DIRECTORY,
)
from strongroom.enclave.fixed_paths import (
    OUTPUTS_DIRECTORY as OUTPUTS_DIRECTORY,
)
from strongroom.enclave.fixed_paths import (
    PROGRAM_DIRECTORY as PROGRAM_DIRECTORY,
)
from strongroom.enclave.fixed_paths import (
    ROOT_DIRECTORY as ROOT_DIRECTORY,
)
from strongroom.enclave.fixed_paths import (
    SANDBOX_ENVIRONMENT as SANDBOX_ENVIRONMENT,
)
from strongroom.enclave.fixed_paths import (
    SANDBOX_PYCACHE as SANDBOX_PYCACHE,
)
from strongroom.enclave.fixed_paths import (
    VAULTS_DIRECTORY as VAULTS_DIRECTORY,
)
from strongroom.errors import FormatError

PROGRAM_ENTRY = "strongroom.enclave.entry"
SERVICE_ENTRY = "strongroom.serve.inside"
DEALER_ENTRY = "strongroom.enclave.dealer"
SANDBOX, PROCESS = "sandbox", "process"

_MAX_SIZE = 1 << 20  # a policy's document and how JSON quotes it


@dataclass(frozen=True)
class VaultMount:
    """A vault or sealed file of the policy, and where the program finds its content; without `mount`, nowhere."""

    name: str
    mount: str
    access: str


@dataclass(frozen=True)
class FileMount:
    """A file that is written before the program starts: `content` is a template, `mode` its permission bits."""

    path: str
    content: str
    mode: int


@dataclass(frozen=True)
class BootConfig:
    """What the host passes in and the measurement covers.

    Attributes:
        entry: the module that boots and then runs the program or the service.
        policy: namespace/name of the policy, the same in every version of it; empty for a dealer.
        cas_root: the CAS that may configure this enclave; no other gets its evidence. Empty for a dealer, which
            receives nothing and shows its evidence to its servers.
        cas_reference: a document of reference values that the CAS's own evidence must have before this enclave shows
            its own; empty to trust that root wherever it is used.
        role: ``program``, ``service`` or ``dealer``.
        command: program and arguments, as templates of secrets; ``{vault:NAME}`` stands for the path at which a vault
            is found.
        environment: what the program gets besides its secrets, as templates too.
        vaults: where vaults appear.
        authenticated: which of them are authenticated only: in clear on the host's disk. The others are encrypted.
        sealed: where files that are sealed by themselves appear.
        files: what is written before the program starts.
        ephemeral: directories that begin empty and end with the enclave.
        host: paths at which a directory of the host's shows, which it can read and change.
        log: the vault that the program's standard output and error are sealed into; empty for none.
        quiet: with `log`, the host does not get these streams.
        image: the digest of the container image that is the program's root; empty for none.
        directory: where the program starts, with `image`.
        volumes: directories in memory that begin with what the image has there.
        tools: the system's programs that the program starts, measured with it: these, and no others, can be. None if
            any can be, and none is measured.
        isolation: ``sandbox``, or ``process`` where there is none and paths are the host's.
    """

    entry: str
    policy: str
    cas_root: str
    role: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    vaults: tuple[VaultMount, ...] = ()
    authenticated: tuple[str, ...] = ()
    sealed: tuple[VaultMount, ...] = ()
    files: tuple[FileMount, ...] = ()
    ephemeral: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    log: str = ""
    quiet: bool = False
    image: str = ""
    directory: str = ""
    volumes: tuple[str, ...] = ()
    tools: tuple[str, ...] | None = None
    isolation: str = SANDBOX
    cas_reference: str = ""

    def to_bytes(self) -> bytes:
        """Canonical JSON: the bytes that are measured."""
        return canonical(
            {
                "entry": self.entry,
                "policy": self.policy,
                "cas_root": self.cas_root,
                "cas_reference": self.cas_reference,
                "role": self.role,
                "isolation": self.isolation,
                "command": list(self.command),
                "environment": dict(self.environment),
                "vaults": [asdict(each) for each in self.vaults],
                "authenticated": list(self.authenticated),
                "sealed": [asdict(each) for each in self.sealed],
                "files": [asdict(each) for each in self.files],
                "ephemeral": list(self.ephemeral),
                "host": list(self.host),
                "log": self.log,
                "quiet": self.quiet,
                "image": self.image,
                "directory": self.directory,
                "volumes": list(self.volumes),
                "tools": None if self.tools is None else list(self.tools),
            },
            cap=_MAX_SIZE,
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> BootConfig:
        """Raises FormatError unless `raw` is exactly what `to_bytes` gives."""
        value: dict[str, Any] = parse_canonical(raw, cap=_MAX_SIZE)
        try:
            config = cls(
                entry=value["entry"],
                policy=value["policy"],
                cas_root=value["cas_root"],
                cas_reference=value["cas_reference"],
                role=value["role"],
                isolation=value["isolation"],
                command=tuple(value["command"]),
                environment=value["environment"],
                vaults=tuple(VaultMount(**v) for v in value["vaults"]),
                authenticated=tuple(value["authenticated"]),
                sealed=tuple(VaultMount(**v) for v in value["sealed"]),
                files=tuple(FileMount(**f) for f in value["files"]),
                ephemeral=tuple(value["ephemeral"]),
                host=tuple(value["host"]),
                log=value["log"],
                quiet=value["quiet"],
                image=value["image"],
                directory=value["directory"],
                volumes=tuple(value["volumes"]),
                tools=None if value["tools"] is None else tuple(value["tools"]),
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"boot configuration: {str(error)[:100]}") from None
        if config.to_bytes() != raw:
            raise FormatError("boot configuration: not in canonical form")
        return config
