"""What a program tries from within its enclave, and what other processes of the machine try from outside."""

import json
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from strongroom.cas.policy.version import VaultRule
from strongroom.cli.doctor import ThisMachine, examine
from strongroom.enclave import sandbox
from strongroom.enclave.landlock import landlock_version
from strongroom.enclave.launch import SAME_USER, Isolation
from strongroom.enclave.users import is_enclave_user
from tests.enclave.conftest import OUT, World, home_and_cas, world  # noqa: F401  # fixtures

OTHER = 4242  # a user id that has nothing to do with enclaves

PROBE = """
import ctypes, errno, json, mmap, multiprocessing, os, pathlib, platform, resource, socket, subprocess, sys, threading
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
    except OSError as error: return errno.errorcode[error.errno]
def connect(family, kind, address):
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        sock.connect(address)
        sock.send(b"x")
def sees(path):
    try: return len(open(path, "rb").read(16))
    except OSError as error: return errno.errorcode[error.errno]
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
    ],
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


@pytest.fixture(scope="module")
def seen(home_and_cas, tmp_path_factory):  # noqa: F811
    """What the probe found, launched as this user launches."""
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    here = World(tmp_path_factory.mktemp("probe"), *home_and_cas)
    name = f"strongroom-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{name}")
        local.listen()
        words = ("{vault:out}", str(server.getsockname()[1]), name)
        job = here.job(PROBE, *words, rules=(OUT,), vaults={"out": here.seal("out")})
        status, output = job.run()
    assert status == 0
    found = json.loads(output)
    [found["confined"]] = [detail for name, detail in job.events if name == "confined"]
    return found


def test_calls_that_reach_beyond_the_program_fail(seen):
    assert set(seen["calls"].values()) == {"EPERM"}, seen["calls"]
    assert seen["clone"] == ["EPERM"] * 3
    assert seen["clone3"] == "ENOSYS"
    assert seen["personality"] == ["did", "EPERM"]
    assert seen["ioctl"] == ["EPERM"] * 2


def test_no_connection_leaves_the_enclave(seen):
    assert not {"None"} & set(seen["outside"]), seen["outside"]
    assert (seen["vsock"], seen["raw"]) == ("EAFNOSUPPORT", "EPERM")


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
    if Isolation.here().separate:
        assert is_enclave_user(seen["user"])
        assert seen["confined"]["user"] == seen["user"]
    else:
        assert (seen["user"], seen["confined"]["user"]) == (0, None)


SECRET = b"sealed-and-only-for-the-program"
HOLDER = """
import os, sys
secret = open(sys.argv[1] + "/secret", "rb").read()
with open("/dev/stdout", "w") as stream: stream.write("ready\\n")
with open("/dev/stdin") as stream: stream.read()
"""
# Whatever of a process can be opened by name.
SPY = """
import os, sys
for pid in sys.argv[1:]:
    for name in ("mem", "environ", "maps", "auxv", "stack", "syscall", "io"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file: data = name == "mem" or file.read()
            if data: print(pid, name)
        except OSError: pass
    for name in ("fd", "map_files", "root/tmp", "cwd/", "root/run", "root/program"):
        try: print(pid, name, os.listdir(f"/proc/{pid}/{name}"))
        except OSError: pass
    for name in ("exe", "cwd", "root"):
        try: print(pid, name, os.readlink(f"/proc/{pid}/{name}"))
        except OSError: pass
"""


def family(pid):
    """A process and all that descend from it."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in
                (task / "children").read_text().split()]  # fmt: skip
    return [pid, *(each for child in children for each in family(child))]


def spied(enclave, *identity):
    """What a process with this identity sees of an enclave's processes."""
    command = [*identity, "/usr/bin/python3", "-I", "-c", SPY, *map(str, family(enclave._process.pid))]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


@pytest.fixture
def holding(world):  # noqa: F811
    """Launches a program that holds a secret until its standard input ends."""
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    rules = (VaultRule("data", "/data", "read-only"), OUT)
    vaults = {"data": world.seal("data", secret=SECRET), "out": world.seal("out")}
    job = world.job(HOLDER, "{vault:data}", rules=rules, vaults=vaults)
    ours, theirs = os.pipe()
    standard = os.dup(0)
    os.dup2(ours, 0)
    read, write = os.pipe()
    enclave = job.launch(stdout=write)
    os.dup2(standard, 0)
    for descriptor in (ours, write, standard):
        os.close(descriptor)
    with os.fdopen(read) as lines:
        assert lines.readline() == "ready\n"
        yield enclave
        os.close(theirs)
        assert enclave.wait() == 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="takes root: another user's process is started")
def test_another_users_process_sees_nothing_of_an_enclave(holding, tmp_path):
    other = ("setpriv", "--reuid", str(OTHER), "--regid", str(OTHER), "--clear-groups", "--bounding-set", "-all")
    assert spied(holding, *other) == []
    # Nor does another enclave's program: it has another user id.
    processes = family(holding._process.pid)
    if Isolation.here().separate:
        [program] = {user for pid in processes if is_enclave_user(user := Path(f"/proc/{pid}").stat().st_uid)}
        spaces = {Path(f"/proc/{pid}/ns/user").readlink() for pid in processes}
        assert spaces == {Path("/proc/self/ns/user").readlink()}
        another = str(program + 1)
        assert spied(holding, "setpriv", "--reuid", another, "--regid", another, *other[5:]) == []
    programs = list(Path(tempfile.gettempdir()).glob(f"strongroom-program-{os.getpid()}-*"))
    assert programs
    for path in [*programs, tmp_path / "out.vault", tmp_path / "data.vault"]:
        listed = subprocess.run([*other, "ls", str(path)], capture_output=True, check=False)
        assert listed.returncode != 0, path


@pytest.fixture
def as_a_plain_user(monkeypatch):
    """In a user namespace, as without root; who attacks is then this same user."""
    monkeypatch.setattr(sandbox, "separate_users", lambda bwrap: False)


def test_without_root_the_same_user_can_look_in_and_everything_says_so(as_a_plain_user, holding):
    same = ("setpriv", "--inh-caps", "-all", "--bounding-set", "-all") if os.geteuid() == 0 else ()
    looked = spied(holding, *same)
    assert any("mem" in line for line in looked)
    assert any("environ" in line for line in looked)
    assert SAME_USER in Isolation.here().notes
    doctor = " ".join(row.detail for row in examine(ThisMachine()))
    assert "a process of the same user outside the sandbox can read its memory" in doctor
    threats = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text()
    assert "**The same user can look in.**" in threats


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
