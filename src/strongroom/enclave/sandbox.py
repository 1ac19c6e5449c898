"""How much isolation this machine gives a simulated enclave, and the command line that sets it up.

With bubblewrap, an enclave has its own namespaces for mounts, processes, network, IPC and host name, sees only the
interpreter, its environment, the system's programs and its own files, all read-only, and has no network but the sockets
handed to it. Without, it is an ordinary process of the user, and says so.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from strongroom.enclave.config import MIRROR_DIRECTORY, PROGRAM_DIRECTORY, VAULTS_DIRECTORY
from strongroom.enclave.measure import Environment
from strongroom.errors import UnsupportedPlatformError

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/localtime")


def require_linux() -> None:
    """Raises UnsupportedPlatformError where no enclave can be launched."""
    if not sys.platform.startswith("linux"):
        raise UnsupportedPlatformError(
            f"platform: enclaves are launched on Linux, this is {sys.platform}",
            hint="sealing, unsealing, `predict` and a CAS's clients work here; run the enclave on a Linux machine",
        )


@functools.cache
def bubblewrap() -> str | None:
    """The path of a bubblewrap that works here, or None."""
    path = shutil.which("bwrap")
    return path if path is not None and _works([path]) else None


@functools.cache
def can_disable_user_namespaces(bwrap: str) -> bool:
    """Whether this bubblewrap (0.8 and later) can keep the program from making user namespaces of its own."""
    return _works([bwrap, "--disable-userns"])


def _works(command: list[str]) -> bool:
    trial = [
        *command,
        "--unshare-all",
        "--unshare-user",
        "--uid",
        "0",
        "--gid",
        "0",
        "--ro-bind",
        "/",
        "/",
        "/bin/true",
    ]
    try:
        return subprocess.run(trial, capture_output=True, timeout=20, check=False).returncode == 0  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False


def fuse_available() -> bool:
    """Whether vaults can be mounted: the module is installed and the device may be opened."""
    return importlib.util.find_spec("pyfuse3") is not None and os.access("/dev/fuse", os.R_OK | os.W_OK)


def bubblewrap_command(
    bwrap: str,
    inner: Sequence[str],
    *,
    environment: Environment,
    program: Path,
    vaults: Mapping[str, tuple[Path, bool]],
    mirror: Path | None,
    fuse: bool,
    info_fd: int,
) -> list[str]:
    """The command that runs `inner` in a sandbox.

    Args:
        program: a directory with exactly the program's files.
        vaults: place on the host, and whether it is writable, by name.
        mirror: a directory on the host that the program's mirror is written to.
        fuse: let the enclave mount file systems of its own.
        info_fd: where bubblewrap reports the process id.
    """
    command = [bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--as-pid-1"]
    if can_disable_user_namespaces(bwrap):
        command.append("--disable-userns")
    # Started by root, bubblewrap would leave nearly every capability.
    command += ["--uid", "0", "--gid", "0", "--cap-drop", "ALL", "--hostname", "enclave", "--info-fd", str(info_fd)]
    command += ["--ro-bind", "/usr", "/usr"]
    for path in _SYSTEM:
        if os.path.islink(path):  # noqa: PTH114
            command += ["--symlink", os.readlink(path), path]  # noqa: PTH115
        elif os.path.isdir(path):  # noqa: PTH112
            command += ["--ro-bind", path, path]
    for path in _ETC:
        command += ["--ro-bind-try", path, path]
    # /proc/sys asks for root's user id, not for a capability: launched by root, a program could write to it.
    command += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108  # the enclave's own
    for root in _visible(environment):
        command += ["--ro-bind", str(root), str(root)]
    command += ["--ro-bind", str(program), PROGRAM_DIRECTORY, "--dir", VAULTS_DIRECTORY]
    for name, (place, writable) in vaults.items():
        command += ["--bind" if writable else "--ro-bind", str(place), f"{VAULTS_DIRECTORY}/{name}"]
    if mirror is not None:
        command += ["--bind", str(mirror), MIRROR_DIRECTORY]
    # For the boot process alone, in its own user namespace: to mount vaults, and to hide their ciphertext from the
    # program, which gets no capability at all.
    command += ["--cap-add", "CAP_SYS_ADMIN"]
    if fuse:
        command += ["--dev-bind", "/dev/fuse", "/dev/fuse"]
    return [*command, "--chdir", PROGRAM_DIRECTORY, "--", *inner]


def _visible(environment: Environment) -> list[Path]:
    """The environment's directories, without those that lie in one another or in /usr."""
    roots = [environment.base_prefix, environment.prefix, environment.stdlib, *environment.site_packages]
    roots += [environment.package, environment.executable.resolve().parent]
    kept: list[Path] = []
    for root in sorted({r for r in roots if r.exists()}, key=lambda r: len(r.parts)):
        if not any(root.is_relative_to(other) for other in [*kept, Path("/usr")]):
            kept.append(root)
    return kept
