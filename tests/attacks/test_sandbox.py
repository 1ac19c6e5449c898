"""What a program tries from within its enclave, launched by root and as a plain user launches it."""

import json
import os
import socket

import pytest

from strongroom.enclave import sandbox
from strongroom.enclave.landlock import landlock_version
from strongroom.enclave.launch import Isolation
from strongroom.enclave.users import is_enclave_user
from tests.enclave.conftest import OUT, World, home_and_cas, world  # noqa: F401  # fixtures

# What tells of the host's kernel, where it has them; `cpuinfo` and the like a program may count.
KERNEL = (
    "cmdline",
    "config.gz",
    "interrupts",
    "iomem",
    "kallsyms",
    "kcore",
    "keys",
    "kmsg",
    "kpagecount",
    "timer_list",
)

PROBE = """
import ctypes, errno, json, mmap, multiprocessing, os, pathlib, platform, resource, socket, struct, subprocess, sys
import threading
libc = ctypes.CDLL(None, use_errno=True)
out = pathlib.Path(sys.argv[1])
NUMBERS = {
    "x86_64": dict(ptrace=101, process_vm_readv=310, kexec_load=246, init_module=175, finit_module=313, bpf=321,
        perf_event_open=298, keyctl=250, add_key=248, userfaultfd=323, mount=165, umount2=166, pivot_root=155,
        chroot=161, open_tree=428, fsopen=430, setns=308, unshare=272, io_uring_setup=425, open_by_handle_at=304,
        personality=135, clone=56),
    "aarch64": dict(ptrace=117, process_vm_readv=270, kexec_load=104, init_module=105, finit_module=273, bpf=280,
        perf_event_open=241, keyctl=219, add_key=217, userfaultfd=282, mount=40, umount2=39, pivot_root=41, chroot=51,
        open_tree=428, fsopen=430, setns=268, unshare=97, io_uring_setup=425, open_by_handle_at=265, personality=92,
        clone=220),
}[platform.machine()]
def call(number, *arguments):
    ctypes.set_errno(0)
    return errno.errorcode.get(ctypes.get_errno()) if libc.syscall(number, *arguments) == -1 else "did"
def why(what):
    try: return repr(what())
    except OSError as error: return errno.errorcode.get(error.errno, "refused")
def connect(family, kind, address):
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        sock.connect(address)
        sock.send(b"x")
def sees(path):
    try: return len(open(path, "rb").read(16))
    except OSError as error: return errno.errorcode[error.errno]
def netlink(protocol, message):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.send(message)
        error = struct.unpack_from("i", sock.recv(4096), 16)[0]
        if error: raise OSError(-error, "refused")
def up(name):
    with socket.socket(inet, socket.SOCK_DGRAM) as sock:
        return bool(struct.unpack_from("16sH", __import__("fcntl").ioctl(sock, 0x8913, struct.pack("16s24x",
            name.encode())))[1] & 1)
new_link = struct.pack("IHHIIBxHiII", 32, 16, 0x605, 1, 0, 0, 0, 0, 0, 0)  # RTM_NEWLINK, to be acknowledged
inet, port = socket.AF_INET, int(sys.argv[2])
seen = {
    "calls": {name: call(number, 0x40000, 0, 0, 0, 0) for name, number in NUMBERS.items()
              if name not in ("clone", "personality")},
    "clone": [call(NUMBERS["clone"], flag, 0, 0, 0, 0) for flag in (0x10000000, 0x20000, 0x40000000)],
    "clone3": call(435, 0, 0),
    "personality": [call(NUMBERS["personality"], 0xffffffff), call(NUMBERS["personality"], 0x40000)],
    "ioctl": [why(lambda: __import__("fcntl").ioctl(0, code, b"x")) for code in (0x5412, 0x541c)],
    "vsock": why(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "outside": [
        why(lambda: connect(inet, socket.SOCK_STREAM, ("127.0.0.1", port))),
        why(lambda: connect(inet, socket.SOCK_STREAM, ("192.0.2.1", 443))),
        why(lambda: connect(inet, socket.SOCK_DGRAM, ("192.0.2.1", 53))),
        why(lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 443))),
        why(lambda: connect(socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::1", 53))),
        why(lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, chr(0) + sys.argv[3])),
        why(lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, sys.argv[4])),
        why(lambda: socket.getaddrinfo("example.org", 443)),
    ],
    "netlink": why(lambda: netlink(0, new_link)),
    "interfaces": [name for _, name in socket.if_nameindex() if why(lambda: up(name)) == "True"],
    "descriptors": sorted(os.listdir("/proc/self/fd"), key=int),
    "devices": sorted(os.listdir("/dev")),
    "kernel": {name: sees(f"/proc/{name}") for name in sys.argv[5].split(",")},
    "host": [path for path in ("/sys/firmware", "/sys/class", "/sys/kernel", "/etc/hostname", "/etc/machine-id",
             "/etc/resolv.conf", "/etc/shadow", "/var/run", "/run/dbus", "/boot", "/var/log", sys.argv[4])
             if os.path.exists(path)],
    "host name": [socket.gethostname(), os.uname().nodename, pathlib.Path("/proc/sys/kernel/hostname").read_text()],
    "raw": why(lambda: socket.socket(inet, socket.SOCK_RAW, 1)),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "nosuid": all(bool(os.statvfs(place).f_flag & os.ST_NOSUID) for place in ("/usr", "/tmp", "/program", str(out))),
    "user": os.getuid(),
    "boot": {name: sees(f"/proc/{os.getppid()}/{name}") for name in ("mem", "environ", "maps", "auxv")},
    "signal": why(lambda: os.kill(os.getppid(), 0)),
    "private": [why(lambda: pathlib.Path(place, "new").write_text("x")) for place in ("/tmp", "/dev/shm", out)],
    "wrote": [place for place in ("/", "/run", "/var", "/usr", "/program", "/etc")
              if why(lambda: pathlib.Path(place, "new").write_text("x")) == "1"],
    "self": pathlib.Path("/proc/self/comm").write_text("renamed"),
}
crashed = subprocess.run([sys.executable, "-c", "import os; os.abort()"], cwd=out)
seen["crash"] = [crashed.returncode, sorted(p.name for p in out.iterdir())]
threads = [threading.Thread(target=sum, args=([1] * 1000,)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)  # as compilers at run time do
with multiprocessing.get_context("fork").Pool(2) as pool:
    seen["pool"] = pool.map(abs, [-1, -2])
socket.gethostbyname(socket.gethostname())
seen["name"] = __import__("pwd").getpwuid(os.getuid()).pw_name
pair = socket.create_server(("127.0.0.1", 0))
socket.create_connection(pair.getsockname()).close()
print(json.dumps(seen))
"""


@pytest.fixture(scope="module", params=["as root launches", "in a user namespace"])
def seen(request, home_and_cas, tmp_path_factory):  # noqa: F811
    """What the probe found."""
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    if request.param == "as root launches" and not Isolation.here().separate:
        pytest.skip("takes root: the program gets a user id of its own")
    directory = tmp_path_factory.mktemp("probe")
    here = World(directory, *home_and_cas)
    name = f"strongroom-{os.getpid()}"
    with (
        pytest.MonkeyPatch.context() as patch,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as local,
    ):
        if request.param == "in a user namespace":
            patch.setattr(sandbox, "separate_users", lambda bwrap: False)
        abstract.bind(f"\0{name}")
        local.bind(str(directory / "socket"))
        for each in (abstract, local):
            each.listen()
        words = (str(server.getsockname()[1]), name, str(directory / "socket"), ",".join(KERNEL))
        job = here.job(PROBE, "{vault:out}", *words, rules=(OUT,), vaults={"out": here.seal("out")})
        status, output = job.run()
    assert status == 0
    found = json.loads(output)
    [found["confined"]] = [detail for name, detail in job.events if name == "confined"]
    found["separate"] = request.param == "as root launches"
    return found


def test_calls_that_reach_beyond_the_program_fail(seen):
    assert set(seen["calls"].values()) == {"EPERM"}, seen["calls"]
    assert seen["clone"] == ["EPERM"] * 3
    assert seen["clone3"] == "ENOSYS"
    assert seen["personality"] == ["did", "EPERM"]
    assert seen["ioctl"] == ["EPERM"] * 2


def test_no_connection_leaves_the_enclave(seen):
    assert not {"None"} & set(seen["outside"]), seen["outside"]
    assert (seen["vsock"], seen["raw"], seen["netlink"]) == ("EAFNOSUPPORT", "EPERM", "EPERM")
    assert seen["interfaces"] == ["lo"]


def test_nothing_tells_of_the_host(seen):
    assert set(seen["kernel"].values()) <= {"EACCES", "ENOENT"}, seen["kernel"]
    assert seen["host"] == []
    assert {name.strip() for name in seen["host name"]} == {"enclave"}
    common = {"core", "fd", "full", "fuse", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"}
    assert set(seen["devices"]) <= {*common, "console", "tty", "urandom", "zero"}


def test_the_program_inherits_its_standard_streams_alone(seen):
    assert [*map(int, seen["descriptors"])][:-1] == [0, 1, 2]  # the last one lists them


def test_no_core_is_dumped_and_no_setuid_bit_counts(seen):
    assert seen["core"] in ([1, 1], [0, 0])
    assert seen["crash"] == [-6, ["new"]]
    assert seen["nosuid"] is True


def test_the_program_reaches_neither_boot_nor_what_is_not_its_own(seen):
    assert set(seen["boot"].values()) <= {"EACCES", "EPERM"}
    assert seen["signal"] == "EPERM"
    assert seen["private"] == ["1"] * 3
    assert seen["wrote"] == []


def test_threads_and_children_work(seen):
    assert seen["pool"] == [1, 2]
    assert seen["name"] in ("enclave", "root")


def test_the_run_tells_how_it_is_confined(seen):
    assert seen["confined"]["seccomp"] is True
    assert seen["confined"]["landlock"] == landlock_version()
    if seen["separate"]:
        assert is_enclave_user(seen["user"])
        assert seen["confined"]["user"] == seen["user"]
    else:
        assert (seen["user"], seen["confined"]["user"]) == (0, None)


def test_without_bubblewrap_there_is_still_no_network_and_no_sight_of_the_home(world, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    source = f"""
import json, os, pathlib, socket
def why(what):
    try: return repr(what())
    except OSError as error: return error.errno
print(json.dumps([
    [why(lambda: socket.socket(family, kind)) for family in (2, 10, 40) for kind in (1, 2)],
    why(lambda: os.listdir({str(world.home.path)!r} + "/cas") and None),
    why(lambda: open({str(world.home.path / "owner.key")!r}).read()),
    why(lambda: open(f"/proc/{{os.getppid()}}/mem", "rb").close()),
    why(lambda: pathlib.Path({str(world.directory)!r}, "leak").write_text("x")),
    why(lambda: pathlib.Path(os.environ["TMPDIR"], "mine").write_text("x")),
    socket.socketpair() and "pair",
]))
"""
    status, output = world.job(source).run()
    assert status == 0
    sockets, _, key, memory, leak, mine, pair = json.loads(output)
    assert set(sockets) == {97}  # EAFNOSUPPORT
    assert mine == "1"
    assert pair == "pair"
    if landlock_version():
        assert all(isinstance(each, int) for each in (key, memory, leak)), output
