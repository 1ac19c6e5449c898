"""How much isolation this machine gives a simulated enclave, and the command line that sets it up.

With bubblewrap, an enclave has its own namespaces for mounts, processes, network, IPC and host name, sees only the
interpreter, its environment, the system's programs and its own files, all read-only, and has no network but the sockets
handed to it. Without, it is an ordinary process of the user, and says so.

- Launched by a plain user, it is in a user namespace, in which it is root: what makes one has every right over what is
  in it, and so has every other process of that user.
- Launched by root, the program of an enclave has a user id that nothing else on the machine has, and there is no user
  namespace. Its boot process stays root, with the capabilities that it needs to mount vaults and hand files over.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from strongroom.enclave.config import (
    COMPILED_DIRECTORY,
    IMAGE_DIRECTORY,
    MIRROR_DIRECTORY,
    PROGRAM_DIRECTORY,
    VAULTS_DIRECTORY,
)
from strongroom.enclave.measure import Environment
from strongroom.errors import EnclaveError, UnsupportedPlatformError

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/nsswitch.conf", "/etc/localtime", "/etc/fonts")
# How many cores there are and which lie together: thread pools (joblib's, XNNPACK's, OpenMP's) are sized by it.
_TOPOLOGY = ("/sys/devices/system/cpu", "/sys/devices/system/node")
# Of /proc, what tells of the machine's kernel or reaches into it, and no computation needs: container runtimes hide
# most of it too (OCI's "masked paths"). The rest is the enclave's own, serves drivers, or counts processors and memory.
_MASKED = (
    *("acpi", "asound", "bus", "cmdline", "config.gz", "fs", "interrupts", "iomem", "ioports", "irq", "kallsyms"),
    *("kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "locks"),
    *("mtrr", "pagetypeinfo", "sched_debug", "scsi", "slabinfo", "sysrq-trigger", "timer_list", "tty"),
    *("vmallocinfo", "vmcore"),
)
_USERS = ("--unshare-all", "--unshare-user", "--uid", "0", "--gid", "0")
_ROOTS = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
# For the boot process alone, in its own user namespace: to mount vaults, and to hide their ciphertext from the program,
# which gets no capability at all.
_USERS_CAPABILITIES = ("CAP_SYS_ADMIN",)
# To make a network for the program, and to listen in it at the ports of hosts outside, in their place.
_NETWORK_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE")
# And without one: to give the program what is its own, take it back, become its user, and end it.
_ROOTS_CAPABILITIES = (*("CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"),)


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


@functools.cache
def separate_users(bwrap: str) -> bool:
    """Whether enclaves can have user ids of their own here: launched by root, which may do without a user namespace."""
    return os.geteuid() == 0 and _starts([bwrap, *_ROOTS, *_capabilities(_ROOTS_CAPABILITIES)])


def _works(command: list[str]) -> bool:
    return _starts([*command, *_USERS])


def _starts(command: list[str]) -> bool:
    trial = [*command, "--ro-bind", "/", "/", "/bin/true"]
    null = subprocess.DEVNULL  # and no pipe, which a child that outlives it would hold
    try:
        status = subprocess.run(trial, stdin=null, stdout=null, stderr=null, timeout=20, check=False).returncode  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    if status < 0:  # which says nothing of what this machine gives
        raise EnclaveError(
            f"{command[0]}: ended by {signal.Signals(-status).name} as it was tried", hint="run it again"
        )
    return status == 0


def _capabilities(names: Sequence[str]) -> list[str]:
    """Started by root, bubblewrap would leave nearly all of them."""
    return ["--cap-drop", "ALL", *(word for name in names for word in ("--cap-add", name))]


def fuse_available() -> bool:
    """Whether vaults can be mounted: the module is installed and the device may be opened."""
    return importlib.util.find_spec("pyfuse3") is not None and os.access("/dev/fuse", os.R_OK | os.W_OK)


def bubblewrap_command(
    bwrap: str,
    inner: Sequence[str],
    *,
    environment: Environment,
    program: Path,
    identities: Path,
    vaults: Mapping[str, tuple[Path, bool]],
    mirror: Path | None,
    hosts: Mapping[str, Path],
    fuse: bool,
    info_fd: int,
    separate: bool = False,
    compiled: Path | None = None,
    image: Path | None = None,
    meshed: bool = False,
) -> list[str]:
    """The command that runs `inner` in a sandbox.

    Args:
        program: a directory with exactly the program's files.
        identities: a directory with the files ``passwd``, ``group`` and ``hosts`` that it sees.
        vaults: place on the host, and whether it is writable, by name.
        mirror: a directory on the host that the program's mirror is written to.
        hosts: directories on the host that are shown to the program, by their paths in the enclave.
        fuse: let the enclave mount file systems of its own.
        info_fd: where bubblewrap reports the process id.
        separate: the program will have a user id of its own: no user namespace.
        compiled: a directory with compiled code of what was measured.
        image: the tree of a container image, which will be the program's root.
        meshed: its boot makes a network of its own.
    """
    command = [bwrap, *(_ROOTS if separate else _USERS), "--die-with-parent", "--new-session", "--as-pid-1"]
    if not separate and can_disable_user_namespaces(bwrap):
        command.append("--disable-userns")
    capabilities = _ROOTS_CAPABILITIES if separate else _USERS_CAPABILITIES
    command += _capabilities((*capabilities, *(_NETWORK_CAPABILITIES if meshed else ())))
    command += ["--hostname", "enclave", "--info-fd", str(info_fd)]
    command += ["--ro-bind", "/usr", "/usr"]
    for path in _SYSTEM:
        if os.path.islink(path):  # noqa: PTH114
            command += ["--symlink", os.readlink(path), path]  # noqa: PTH115
        elif os.path.isdir(path):  # noqa: PTH112
            command += ["--ro-bind", path, path]
    command += ["--dir", "/etc"]  # of directories that bubblewrap makes on its own, it lets only their owner enter some
    for path in _ETC:
        command += ["--ro-bind-try", path, path]
    for name in ("passwd", "group", "hosts"):
        command += ["--ro-bind", str(identities / name), f"/etc/{name}"]
    # /proc/sys asks for root's user id, not for a capability: launched by root, a program could write to it.
    command += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108  # the enclave's own
    command += _masks()
    for parent in reversed(Path(_TOPOLOGY[0]).parents[:-1]):
        command += ["--dir", str(parent)]
    for path in _TOPOLOGY:
        command += ["--ro-bind-try", path, path]
    for root in visible(environment):
        for parent in reversed(root.parents[:-1]):
            command += ["--dir", str(parent)]
        command += ["--ro-bind", str(root), str(root)]
    command += ["--ro-bind", str(program), PROGRAM_DIRECTORY, "--dir", VAULTS_DIRECTORY]
    for name, (place, writable) in vaults.items():
        command += ["--bind" if writable else "--ro-bind", str(place), f"{VAULTS_DIRECTORY}/{name}"]
    for shown, place in hosts.items():
        command += ["--bind", str(place), shown]
    if mirror is not None:
        command += ["--bind", str(mirror), MIRROR_DIRECTORY]
    if image is not None:
        command += ["--ro-bind", str(image), IMAGE_DIRECTORY]
    if compiled is not None:
        command += ["--ro-bind", str(compiled), COMPILED_DIRECTORY]
    if fuse:
        command += ["--dev-bind", "/dev/fuse", "/dev/fuse"]
    return [*command, "--chdir", PROGRAM_DIRECTORY, "--", *inner]


def _masks() -> list[str]:
    """An empty directory in place of each masked one, and of a file a device that this mount does not let open."""
    command: list[str] = []
    for name in _MASKED:
        path = f"/proc/{name}"
        if os.path.isdir(path):  # noqa: PTH112
            command += ["--tmpfs", path, "--remount-ro", path]
        elif os.path.exists(path):  # noqa: PTH110
            command += ["--ro-bind", "/dev/null", path]
    return command


def visible(environment: Environment) -> list[Path]:
    """The environment's directories, without those that lie in one another or in /usr."""
    roots = [environment.base_prefix, environment.prefix, environment.stdlib, *environment.site_packages]
    roots += [environment.package, environment.executable.resolve().parent]
    kept: list[Path] = []
    for root in sorted({r for r in roots if r.exists()}, key=lambda r: len(r.parts)):
        if not any(root.is_relative_to(other) for other in [*kept, Path("/usr")]):
            kept.append(root)
    return kept


def readable_by_others(environment: Environment) -> bool:
    """Whether a program with another user id could run in this environment, as far as its top directories tell."""
    roots = [environment.prefix, environment.base_prefix, environment.stdlib, *environment.site_packages]
    return all(root.stat().st_mode & 0o005 == 0o005 for root in [*roots, environment.package]) and bool(
        environment.executable.stat().st_mode & 0o001
    )
