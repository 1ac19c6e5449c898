"""What other processes of the machine try from outside: on a program, a service and a dealer in their enclaves."""

import importlib.util
import os
import select
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from strongroom.cas.policy.version import VaultRule
from strongroom.channel import bind
from strongroom.cli.doctor.probe import ThisMachine
from strongroom.cli.doctor.verb import examine
from strongroom.cli.serve import start_service
from strongroom.enclave import launch as launcher
from strongroom.enclave import sandbox
from strongroom.enclave.launch import SAME_USER, Isolation
from strongroom.enclave.users import allocate, is_enclave_user
from strongroom.errors import EnclaveError, StrongroomError
from tests.attacks.spying import STRANGER, as_user, family, spied
from tests.enclave.conftest import OUT, World, home_and_cas, world  # noqa: F401  # fixtures

root_only = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="takes root: another user's process is started"
)

SECRET = b"sealed-and-only-for-the-program"
HOLDER = """
import os, sys
secret = open(sys.argv[1] + "/secret", "rb").read()
with open("/dev/stdout", "w") as stream: stream.write("ready\\n")
with open("/dev/stdin") as stream: stream.read()
"""


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


def end_with_its_launcher(enclave):
    """Kill the sandbox's first process, as the kernel does when the launcher is killed; how many ended with it."""
    deaths = [os.pidfd_open(pid) for pid in family(enclave._process.pid)]
    enclave._process.kill()
    waited = set(deaths)
    while waited:
        ended, _, _ = select.select(waited, [], [], 60)
        assert ended, "a process of the enclave lives on"
        waited -= set(ended)
    for descriptor in deaths:
        os.close(descriptor)
    return len(deaths)


@contextmanager
def until(event, enclave, over=None):
    """An enclave that has come so far, and is killed in the end."""
    while enclave.running and not event.wait(0.1):
        pass
    try:
        assert enclave.running
        yield
    finally:
        end_with_its_launcher(enclave)
        if over is not None:
            over.set()
        with pytest.raises(StrongroomError):
            enclave.wait()


@contextmanager
def serving(world):  # noqa: F811
    """A service that has begun to accept requests."""
    double = pytest.importorskip("tests.serve.world").double()
    sealed = world.seal("models", **{"double.onnx": double})
    with bind("127.0.0.1", 0) as listener:
        _, enclave, began = start_service(world.home, world.cas, sealed, ["double.onnx"], listener=listener, quiet=True)
        with until(began, enclave):
            yield enclave


@contextmanager
def dealing(directory, home):
    """A dealer that has given up its privileges; its servers keep it waiting."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("computing on shares needs PyTorch: it is not tested")
    from strongroom.cli.mpc.dealer import dealer_enclave
    from strongroom.mpc.ring import Settings

    (directory / "program.py").write_text("")
    config, files = dealer_enclave(["program.py"], Settings(), module=False, include=[])
    confined = threading.Event()

    def heard(name, detail):
        if name == "confined":
            confined.set()

    def held():
        over.wait()
        raise ConnectionRefusedError

    over = threading.Event()
    dials = {"P0": held}
    enclave = launcher.launch(config, files, cas=None, vendor=home.vendor(), vaults={}, dials=dials, on_event=heard)
    with until(confined, enclave, over):
        yield enclave


def check_closed(enclave):
    """Nobody else's process sees anything of it; another enclave's program is somebody else, too."""
    processes = family(enclave._process.pid)
    assert spied(processes, *as_user(STRANGER)) == []
    if Isolation.here().separate:
        users = {int(Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[0]) for pid in processes}
        [user] = filter(is_enclave_user, users)
        spaces = {Path(f"/proc/{pid}/ns/user").readlink() for pid in processes}
        assert spaces == {Path("/proc/self/ns/user").readlink()}
        another = allocate()
        try:
            assert another.id != user
            assert spied(processes, *as_user(another.id)) == []
        finally:
            another.close()


@root_only
def test_another_users_process_sees_nothing_of_an_enclave(holding, tmp_path):
    check_closed(holding)
    programs = list(Path(tempfile.gettempdir()).glob(f"strongroom-program-{os.getpid()}-*"))
    assert programs
    for path in [*programs, tmp_path / "out.vault", tmp_path / "data.vault"]:
        listed = subprocess.run([*as_user(STRANGER), "ls", str(path)], capture_output=True, check=False)
        assert listed.returncode != 0, path


def statuses(enclave):
    """What the kernel says of each thread of the sandboxed process."""
    inner = family(enclave._process.pid)[-1]
    for task in Path(f"/proc/{inner}/task").iterdir():
        yield dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())


@root_only
@pytest.mark.parametrize("role", ["service", "dealer"])
def test_nor_of_a_service_and_a_dealer_which_have_given_up_what_a_program_has_not(role, world, tmp_path, monkeypatch):  # noqa: F811
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    monkeypatch.chdir(tmp_path)
    with serving(world) if role == "service" else dealing(tmp_path, world.home) as enclave:
        check_closed(enclave)
        separate = Isolation.here().separate
        found = list(statuses(enclave))
        assert found
        for status in found:
            ids = {*map(int, status["Uid"].split()), *map(int, status["Gid"].split())}
            assert len(ids) == 1
            assert is_enclave_user(*ids) == separate
            assert status["Groups"].strip() == "" or not separate
            assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.fixture
def as_a_plain_user(monkeypatch):
    """In a user namespace, as without root; who attacks is then this same user."""
    monkeypatch.setattr(sandbox, "separate_users", lambda bwrap: False)


def test_without_root_the_same_user_can_look_in_and_everything_says_so(as_a_plain_user, holding):
    same = ("setpriv", "--inh-caps", "-all", "--bounding-set", "-all") if os.geteuid() == 0 else ()
    looked = spied(family(holding._process.pid), *same)
    assert any("mem" in line for line in looked)
    assert any("environ" in line for line in looked)
    assert SAME_USER in Isolation.here().notes
    doctor = " ".join(row.detail for row in examine(ThisMachine()))
    assert "a process of the same user outside the sandbox can read its memory" in doctor
    threats = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text()
    assert "**The same user can look in.**" in threats


def test_what_is_changed_after_it_was_measured_does_not_run(world, monkeypatch):  # noqa: F811
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    job = world.job("print('measured')")
    real = launcher.measure

    def and_then_change_it(*arguments, **options):
        measured = real(*arguments, **options)
        job.files["job.py"].write_text("print('changed')")
        return measured

    monkeypatch.setattr(launcher, "measure", and_then_change_it)
    assert job.run() == (0, "measured\n")


DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.close(1)
        os.read(0, 1)
        while True: os.read(0, 1) or __import__("time").sleep(1000)
    os._exit(0)
os.wait()
print("ready", flush=True)
while True: __import__("time").sleep(1000)
"""


def test_no_process_outlives_its_enclave(world):  # noqa: F811
    """Not even one that has left its parent and its session, when the launcher is killed."""
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    read, write = os.pipe()
    enclave = world.job(DAEMON).launch(stdout=write)
    os.close(write)
    with os.fdopen(read) as lines:
        assert lines.readline() == "ready\n"
    assert end_with_its_launcher(enclave) >= 4  # bubblewrap, boot, the program, the one that left it
    with pytest.raises(EnclaveError, match="SIGKILL"):
        enclave.wait()


@root_only
def test_the_hosts_variables_reach_no_process_of_an_enclave(world, monkeypatch):  # noqa: F811
    """Not even boot, where the loader and the interpreter would obey them."""
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: the sandbox is not tested")
    for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONSTARTUP", "GLIBC_TUNABLES"):
        monkeypatch.setenv(name, "/chosen/by/the/host")
    read, write = os.pipe()
    enclave = world.job(DAEMON).launch(stdout=write)
    os.close(write)
    with os.fdopen(read) as lines:
        assert lines.readline() == "ready\n"
    variables = [Path(f"/proc/{pid}/environ").read_bytes() for pid in family(enclave._process.pid)]
    end_with_its_launcher(enclave)
    with pytest.raises(EnclaveError):
        enclave.wait()
    assert all(variables)
    assert not [each for each in variables if b"/chosen/by/the/host" in each]
