"""The rows of `strongroom doctor` about what keeps an enclave and the rest of the machine apart.

Each says what is lost without it: all of them are bounds beside each other, and an enclave runs without, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator

from strongroom.cli.doctor.probe import Probe, Row, Status
from strongroom.enclave.seccomp import seccomp_filter

_OWN_ID = (
    *("bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
    *("--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETUID"),
)


def isolation_rows(probe: Probe) -> Iterator[Row]:
    group = "isolation"
    linux = probe.system == "Linux"
    yield Row(
        group,
        "linux",
        "ok" if linux else "missing",
        "enclaves can be launched" if linux else f"this is {probe.system}: sealing, attestation and clients work",
        "launching enclaves",
        "run enclaves on Linux, or in a Linux VM",
        demo=True,
    )
    if not linux:
        return

    needed = "isolating a simulated enclave, without it an ordinary process"
    trouble = "not installed"
    if present := probe.which("bwrap") is not None:
        # The same user and group as in an enclave's sandbox.
        command = ("bwrap", "--unshare-all", "--uid", "0", "--gid", "0", "--ro-bind", "/", "/", "true")
        failure = probe.run(*command)
        trouble = f"a sandbox fails: {failure}" if failure else ""
    yield Row(
        group,
        "bubblewrap",
        "missing" if not present else "limited" if trouble else "ok",
        trouble or "a sandbox starts",
        needed,
        _namespace_remedy(probe) if present and trouble else "install bubblewrap",
    )

    failure = probe.run("unshare", "-Ur", "true") if probe.which("unshare") else "unshare is not installed"
    yield Row(
        group,
        "namespaces",
        "limited" if failure else "ok",
        f"user namespaces fail: {failure}" if failure else "user namespaces start",
        "the sandbox and the network shield",
        _namespace_remedy(probe),
    )
    yield _user_ids(probe, group, sandbox=present and not trouble)
    yield _seccomp(probe, group)
    yield _landlock(probe, group)
    yield _control_groups(probe, group)
    yield _fuse(probe, group)


def _namespace_remedy(probe: Probe) -> str:
    """What most likely keeps a process from making a user namespace, as a command that ends it."""
    blockers = (
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "10000"),
    )
    for name, blocking, allowing in blockers:
        if (probe.read("/proc/sys/" + name.replace(".", "/")) or "").strip() == blocking:
            return f"as root: sysctl {name}={allowing}"
    return "allow user namespaces on this machine, or in this container"


def _user_ids(probe: Probe, group: str, *, sandbox: bool) -> Row:
    """As `strongroom.enclave.sandbox.separate_users` tries it."""
    how = "launch enclaves as root, or as a user under whom nothing else runs"
    if not probe.root():
        trouble = "this is a plain user: its enclaves have its own id"
    elif not sandbox:
        trouble, how = "no sandbox to have one in", "bubblewrap, above"
    elif failure := probe.run(*_OWN_ID, "--ro-bind", "/", "/", "true"):
        trouble, how = (
            f"a sandbox without a user namespace fails: {failure}",
            "allow root CAP_SYS_ADMIN in this container",
        )
    elif closed := probe.closed():
        trouble, how = f"{closed} is closed to other users", f"chmod -R o+rX {closed}"
    else:
        trouble = ""
    return Row(
        group,
        "user ids",
        "limited" if trouble else "ok",
        trouble or "each enclave has an id of its own",
        "keeping processes of the same user out of an enclave, without them they can read its memory",
        how,
    )


def _seccomp(probe: Probe, group: str) -> Row:
    there = "Seccomp:" in (probe.read("/proc/self/status") or "")
    known = seccomp_filter(machine=probe.arch) is not None
    detail = "system calls are filtered"
    if not there or not known:
        detail = "not in this kernel" if not there else f"no filter for {probe.arch}"
    return Row(
        group,
        "seccomp",
        "ok" if there and known else "missing",
        detail,
        "refusing calls that trace, mount, load code into the kernel or reach past namespaces, without it they are "
        "the program's to try, and without a sandbox the network is open to it",
        "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or aarch64",
    )


def _landlock(probe: Probe, group: str) -> Row:
    version = probe.landlock()
    lacks = " (of 6: signals to other processes are not bounded, nor abstract sockets)" if 0 < version < 6 else ""
    return Row(
        group,
        "landlock",
        "missing" if version == 0 else "limited" if lacks else "ok",
        f"version {version}{lacks}" if version else "not in this kernel, or not turned on",
        "a second bound on files, without it a program outside a sandbox reads and writes what its user can",
        "Linux 6.12 or newer" if version else "Linux 5.13 or newer, with landlock among lsm= on its command line",
    )


def _control_groups(probe: Probe, group: str) -> Row:
    found = probe.groups()
    lacks = [name for name in ("memory", "cpu") if name not in found]
    told = ", ".join(f"{name} by version {version}" for name, (version, _) in found.items())
    if lacks:
        told = "; ".join([*([told] if told else []), f"none for {' and '.join(lacks)} that this user may make"])
    how = "as root: mount control groups with these controllers (in a container: writable)"
    if not probe.root():
        how = "systemd-run --user --scope -p Delegate=yes strongroom run ..."
        if "memory" in found:
            how = 'as root: systemctl edit user@.service, "[Service]", "Delegate=cpu memory pids"'
        elif not probe.which("systemd-run"):
            how = "run as root, or have a control group given to this user"
    return Row(
        group,
        "control groups",
        "missing" if not found else "limited" if lacks else "ok",
        told,
        "--memory and --cpus for all of an enclave, without them each process is limited by itself, and to some of the "
        "processors",
        how,
    )


def _fuse(probe: Probe, group: str) -> Row:
    version = probe.version("pyfuse3")
    lacks = []
    if version is None:
        lacks.append(
            ("the package pyfuse3", 'install libfuse3-dev and pkg-config, then pip install "strongroom[fuse]"')
        )
    if not probe.exists("/dev/fuse"):
        lacks.append(("/dev/fuse", "as root: modprobe fuse; start a container with --device /dev/fuse"))
    elif refusal := probe.refusal("/dev/fuse"):
        lacks.append((f"access to /dev/fuse ({refusal})", "as root: chmod 0666 /dev/fuse"))
    status: Status = "missing" if lacks else "ok"
    if probe.which("fusermount3") is None:
        status = "missing" if lacks else "limited"  # enclaves and root mount without it
        lacks.append(("fusermount3 for mounts by plain users", "install fuse3"))
    return Row(
        group,
        "fuse",
        status,
        f"lacks {', '.join(what for what, _ in lacks)}" if lacks else f"pyfuse3 {version}, /dev/fuse opens",
        "decrypting on access, without it into memory at the start",
        "; ".join(how for _, how in lacks) or 'pip install "strongroom[fuse]"',
    )
