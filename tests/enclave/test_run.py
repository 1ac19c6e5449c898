"""Programs in enclaves, from launch to exit: what they get, what they can do, and what they cannot."""

import json
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from strongroom.cas.policy.version import VaultRule
from strongroom.enclave import sandbox
from strongroom.enclave.landlock import landlock_version
from strongroom.errors import (
    CasUnreachableError,
    DebugEnclaveError,
    EnclaveError,
    MeasurementError,
    PeerIdentityError,
    RollbackError,
    TamperedError,
    TruncatedError,
    UnknownPolicyError,
    UsageError,
)
from tests.enclave.conftest import DATA, OUT

COPY = """
import os, pathlib, sys
data, out = (pathlib.Path(p) for p in sys.argv[1:3])
out.joinpath("copy").write_bytes(data.joinpath("numbers").read_bytes() + b"!")
(out / "deep" / "er").mkdir(parents=True)
out.joinpath("deep/er/file").write_text("x")
print(sorted(os.listdir(data)))
"""
PATHS = ("{vault:data}", "{vault:out}")
CHILDREN = """
import subprocess, sys
here = [sys.executable, "-c", "import sortedcontainers; print('ran')"]
for flags, environment in ((["-I"], None), (["-E"], None), ([], {}), (["-I", "-X", "pycache_prefix="], {})):
    subprocess.run([here[0], *flags, *here[1:]], env=environment, check=True)
"""


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def largest(sealed):
    return max((p for p in sealed.path.iterdir() if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture
def copying(world):
    vaults = {"data": world.seal("data", numbers=b"1234" * 50_000), "out": world.seal("out")}
    return world.job(COPY, *PATHS, rules=(DATA, OUT), vaults=vaults)


def test_an_unmodified_program_reads_and_writes_sealed_files_by_name(copying, any_sandbox):
    status, output = copying.run()
    assert (status, output) == (0, "['numbers']\n")
    sealed = copying.vaults["out"]
    with copying.world.owner() as client:
        root = client.anchor(copying.policy.name, "out").read()
    sealed.anchor.advance(sealed.anchor.read(), root)
    with sealed.open() as opened:
        assert [path for path in opened.files() if not path.endswith(".lineage.json")] == ["copy", "deep/er/file"]
        assert opened.read_bytes("copy") == b"1234" * 50_000 + b"!"


def test_a_file_that_the_program_removes_is_gone_from_the_vault(world, any_sandbox):
    out = world.seal("out", old=b"old", kept=b"kept")
    job = world.job("import os, sys; os.remove(sys.argv[1] + '/old')", PATHS[1], rules=(OUT,), vaults={"out": out})
    assert job.run()[0] == 0
    with world.owner() as client:
        out.anchor.advance(out.anchor.read(), client.anchor(job.policy.name, "out").read())
    with out.open() as opened:
        assert opened.files() == ["kept"]


def test_several_vaults_lie_at_paths_of_their_own(world, any_sandbox):
    vaults = {"one": world.seal("one", a=b"first"), "two": world.seal("two", b=b"second")}
    rules = (VaultRule("one", "/data/one", "read-only"), VaultRule("two", "/elsewhere", "read-only"))
    job = world.job(
        "import sys; print(open(sys.argv[1] + '/a').read(), open(sys.argv[2] + '/b').read())",
        *("{vault:one}", "{vault:two}"),
        rules=rules,
        vaults=vaults,
    )
    assert job.run() == (0, "first second\n")


@pytest.mark.parametrize(
    ("source", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("pass", 0)]
)
def test_the_exit_status_is_the_programs(world, any_sandbox, source, status):
    assert world.job(source).run()[0] == status


def test_arguments_and_environment_arrive_unchanged(world, any_sandbox):
    job = world.job(
        "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['SHADE']]))",
        "a b",
        "*",
        "",
        "{not-a-vault}",
        environment={"SHADE": "grün $HOME"},
    )
    status, output = job.run()
    assert status == 0
    assert json.loads(output) == [["a b", "*", "", "{not-a-vault}"], "grün $HOME"]


def test_a_signal_reaches_the_program(world, any_sandbox):
    source = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: (os.write(1, b'told\\n'), sys.exit(3)))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.01)\n"
    )
    job = world.job(source)
    read, write = os.pipe()
    enclave = job.launch(stdout=write)
    os.close(write)
    with os.fdopen(read) as lines:
        assert lines.readline() == "ready\n"
        enclave.signal(signal.SIGTERM)
        assert lines.readline() == "told\n"
    assert enclave.wait() == 3


def test_a_killed_enclave_is_an_error_and_the_vault_stays_as_it_was(world, any_sandbox):
    out = world.seal("out", kept=b"kept")
    source = "import sys, time\nopen(sys.argv[1] + '/new', 'w').write('x')\nprint('ready', flush=True)\ntime.sleep(600)"
    job = world.job(source, PATHS[1], rules=(OUT,), vaults={"out": out})
    read, write = os.pipe()
    enclave = job.launch(stdout=write)
    os.close(write)
    with os.fdopen(read) as lines:
        assert lines.readline() == "ready\n"
        enclave._process.kill()
        with pytest.raises(EnclaveError, match="SIGKILL"):
            enclave.wait()
    with out.open() as opened:
        assert opened.files() == ["kept"]


def test_it_has_no_privileges_no_network_and_no_sight_of_the_host(world, bubblewrap):
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = f"""
import json, os, pathlib, socket
def connect(address):
    try: socket.create_connection(address, 2); return True
    except OSError: return False
import ctypes
def opens(path, flags=os.O_RDONLY):
    try: os.close(os.open(path, flags)); return True
    except OSError: return False
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({{
    "capabilities": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")],
    "no_new_privs": int(status["NoNewPrivs"]),
    "network": connect(("127.0.0.1", {server.getsockname()[1]})),
    "interfaces": sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else ["lo"],
    "visible": [p for p in ({str(world.directory)!r}, {str(world.home.path)!r}, "/etc/shadow", "/etc/ssh", "/var/log")
                if os.path.exists(p)],
    "program": sorted(os.listdir("/program")),
    "processes": len([p for p in os.listdir("/proc") if p.isdigit()]),
    "hostname": socket.gethostname(),
    "settings": [p for p in map(str, pathlib.Path("/proc/sys").rglob("*")) if opens(p, os.O_WRONLY)],
    "user namespace": ctypes.CDLL(None).unshare(0x10000000) == 0,
    "boot": [p for p in ["/proc/1/mem", "/proc/1/environ", *(f"/proc/1/fd/{{n}}" for n in range(20))] if opens(p)],
}}))
"""
        status, output = world.job(source).run()
    assert status == 0
    seen = json.loads(output)
    assert seen["capabilities"] == [0, 0, 0, 0]
    assert seen["no_new_privs"] == 1
    assert seen["network"] is False
    assert seen["interfaces"] == ["lo"]
    assert seen["visible"] == []
    assert seen["program"] == ["job.py"]
    assert seen["processes"] <= 4
    assert seen["hostname"] == "enclave"
    assert seen["settings"] == []  # root's user id would do to write them, if they were not read-only
    if sandbox.can_disable_user_namespaces(sandbox.bubblewrap()):
        assert seen["user namespace"] is False
    assert seen["boot"] == []  # the boot process, which holds the vault keys, is closed to the program


def test_what_was_measured_cannot_be_written(world, bubblewrap):
    source = f"""
import pathlib
for path in ("/program/job.py", "/program/new", {sys.prefix + "/new"!r}, "/usr/new"):
    try: pathlib.Path(path).write_text("x"); print("wrote", path)
    except OSError: pass
"""
    assert world.job(source).run() == (0, "")


def test_a_child_that_outlives_its_parent_dies_with_the_enclave(world, bubblewrap):
    assert world.job("import subprocess; subprocess.Popen(['sleep', '600'])").run()[0] == 0


def test_a_script_changed_by_one_byte_gets_nothing(copying, any_sandbox):
    script = copying.files["job.py"]
    script.write_bytes(script.read_bytes().replace(b"b'!'", b"b'?'").replace(b'b"!"', b'b"?"'))
    with pytest.raises(MeasurementError):
        copying.run()
    assert [name for name, _ in copying.events] == []


def test_a_debug_enclave_gets_nothing(copying, any_sandbox):
    with pytest.raises(DebugEnclaveError):
        copying.run(debug=True)


def test_a_cas_that_was_not_measured_gets_no_evidence(copying, tmp_path):
    from strongroom.cas.service.server import running_cas

    with running_cas(tmp_path / "other-cas") as other, pytest.raises(PeerIdentityError, match="peer authority"):
        copying.run(cas=other)


def test_an_unknown_policy_and_an_absent_cas_are_named(world, copying):
    import dataclasses

    from strongroom.cas.client.address import CasAddress

    copying.config = dataclasses.replace(copying.config, policy="dev/nobody-knows")
    with pytest.raises(UnknownPolicyError, match="dev/nobody-knows"):
        copying.run()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(CasUnreachableError, match=str(port)):
        copying.run(cas=CasAddress(f"https://127.0.0.1:{port}", world.cas.cas_root))


def test_a_flipped_bit_in_sealed_data_is_an_error_of_the_run(copying, any_sandbox):
    path = largest(copying.vaults["data"])
    flip(path, path.stat().st_size // 2)
    with pytest.raises(TamperedError, match="numbers"):
        copying.run()


def test_a_truncated_data_file_is_an_error_of_the_run(copying, any_sandbox):
    path = largest(copying.vaults["data"])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(TruncatedError):
        copying.run()


def test_a_vault_rolled_back_to_an_earlier_version_is_refused(copying, any_sandbox, tmp_path):
    import shutil

    out = copying.vaults["out"]
    shutil.copytree(out.path, tmp_path / "old")
    assert copying.run()[0] == 0
    shutil.rmtree(out.path)
    shutil.copytree(tmp_path / "old", out.path)
    with pytest.raises(RollbackError):
        copying.run()


def test_a_secret_reaches_the_program_and_no_file(world, any_sandbox):
    from strongroom.cas.policy.version import parse_policy

    job = world.job("import os; print(len(bytes.fromhex(os.environ['TOKEN'])))")
    text = job.policy.text.replace("version = 1", "version = 2").replace(
        'previous = ""', f'previous = "{job.policy.digest}"'
    )
    text += '\n[[secrets]]\nname = "token"\nenvironment = "TOKEN"\ngenerate = 32\n'
    assert parse_policy(text).secrets
    with world.owner() as client:
        client.apply(text)
    assert job.run() == (0, "32\n")


def test_without_a_mount_namespace_paths_must_be_asked_for(world, monkeypatch):
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    vaults = {"data": world.seal("data", numbers=b"1")}
    job = world.job("pass", rules=(DATA,), vaults=vaults)
    with pytest.raises(UsageError, match="mount namespace") as caught:
        job.run()
    assert "{vault:data}" in caught.value.hint


def test_without_fuse_the_data_is_unpacked_to_memory_and_the_run_says_so(copying, monkeypatch):
    monkeypatch.setattr(sandbox, "fuse_available", lambda: False)
    assert copying.run()[0] == 0
    how = [detail["how"] for name, detail in copying.events if name == "vault" and detail["vault"] == "data"]
    assert how == ["unpacked to private memory"]


def test_nothing_is_left_behind(copying, any_sandbox):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = (threading.active_count(), descriptors())
    assert copying.run()[0] == 0
    assert threading.active_count() <= before[0]
    assert descriptors() <= before[1]
    assert not list(Path("/dev/shm").glob(f"strongroom-private-{os.getpid()}-*"))


def test_a_program_that_reads_tampered_data_gets_its_results_discarded(copying, any_sandbox):
    path = largest(copying.vaults["data"])
    flip(path, path.stat().st_size // 2)
    with pytest.raises(TamperedError):
        copying.run()
    out = copying.vaults["out"]
    with copying.world.owner() as client:
        assert client.anchor(copying.policy.name, "out").read() == out.anchor.read()
    with out.open() as opened:
        assert opened.files() == []


def test_a_program_cannot_write_to_the_hosts_disk_past_the_vault(world, bubblewrap):
    out = world.seal("out")
    source = """
import os, pathlib
print([str(p) for p in pathlib.Path("/run").rglob("*")])
for place in ("/run/strongroom/vaults/out/leak", "/run/strongroom/leak"):
    try: pathlib.Path(place).write_text("plain")
    except OSError: pass
    else: print("wrote", place)
"""
    job = world.job(source, rules=(OUT,), vaults={"out": out})
    assert job.run(compiled=None) == (0, "['/run/strongroom']\n")
    assert not (out.path / "leak").exists()


def test_compiled_code_beside_the_sources_is_never_run(world, any_sandbox, monkeypatch):
    """It is not measured, so a host could put anything there; here it is planted for a module of the environment."""
    import importlib.util
    import py_compile

    module = Path(importlib.util.find_spec("sortedcontainers").origin)
    cached = Path(importlib.util.cache_from_source(str(module)))
    kept = cached.read_bytes() if cached.exists() else None
    planted = world.directory / module.name
    planted.write_text("print('planted')\n" + module.read_text())
    os.utime(planted, (module.stat().st_mtime, module.stat().st_mtime))
    try:
        py_compile.compile(
            str(planted), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, doraise=True
        )
        for flags in ((), ("-I",)):
            job = world.job("import sortedcontainers; print('ran')")
            job = job if not flags else world.job_of(("python", *flags, "job.py"), job.files)
            assert job.run() == (0, "ran\n")
        if sandbox.bubblewrap() is not None and any_sandbox != "process":
            assert world.job(CHILDREN).run() == (0, "ran\n" * 4)
    finally:
        cached.unlink()
        if kept is not None:
            cached.write_bytes(kept)


@pytest.mark.parametrize("any_sandbox", ["process"], indirect=True)
def test_without_a_sandbox_the_private_memory_of_other_enclaves_is_out_of_reach(world, any_sandbox):
    if not landlock_version():
        pytest.skip("no Landlock in this kernel: without a sandbox nothing keeps programs apart")
    with tempfile.TemporaryDirectory(prefix="strongroom-private-", dir="/dev/shm") as other:
        Path(other, "plain").write_text("plaintext of another")
        source = """
import pathlib, sys
try: print(pathlib.Path(sys.argv[1], "plain").read_text())
except PermissionError: print("refused")
open("/dev/null").close()
"""
        assert world.job(source, other).run() == (0, "refused\n")


def test_the_hosts_layout_has_no_say_in_where_plaintext_goes(copying, bubblewrap, monkeypatch):
    """The layout is not measured: a host that changes it must gain nothing by that."""
    from strongroom.enclave import launch as launcher

    out = copying.vaults["out"]
    real = launcher.HostSide

    def hostile(*arguments, **options):
        leak = "/run/strongroom/vaults/out/leak"
        layout = {"fuse": False, "private_root": leak, "vaults": {"data": leak, "out": leak}}
        options["layout"] = layout | {"user": options["layout"].get("user")}
        return real(*arguments, **options)

    monkeypatch.setattr(launcher, "HostSide", hostile)
    assert copying.run()[0] == 0
    assert not (out.path / "leak").exists()
    for path in out.path.iterdir():
        assert b"12341234" not in path.read_bytes()


def test_the_hosts_variables_do_not_reach_the_program(world, any_sandbox, monkeypatch):
    python = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONBREAKPOINT", "PYTHONPLATLIBDIR")
    for name in ("TERM", "PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "STRONGROOM_PYCACHE", "LC_ALL", *python):
        monkeypatch.setenv(
            name, "/chosen/by/the/host" if name != "PATH" else os.environ["PATH"] + ":/chosen/by/the/host"
        )
    status, output = world.job("import json, os; print(json.dumps(dict(os.environ)))").run()
    assert status == 0
    assert "/chosen/by/the/host" not in output


def test_a_process_that_the_program_leaves_running_cannot_change_what_is_sealed(world, bubblewrap):
    source = """
import os, subprocess, sys
loop = "while :; do echo x >> /out/growing; done"
subprocess.Popen(["sh", "-c", loop])
open("/out/done", "w").write("done")
"""
    out = world.seal("out")
    job = world.job(source, rules=(OUT,), vaults={"out": out})
    assert job.run()[0] == 0
    with world.owner() as client:
        out.anchor.advance(out.anchor.read(), client.anchor(job.policy.name, "out").read())
    with out.open() as opened:
        assert opened.read_bytes("done") == b"done"
        opened.verify()


def test_ctrl_c_at_a_terminal_reaches_the_program_and_its_results_are_sealed(home_and_cas, tmp_path, bubblewrap):
    """A terminal signals every process of the foreground group, not the launcher alone."""
    import pty

    home, _ = home_and_cas
    (tmp_path / "slow.py").write_text(
        "import time\nopen('/out/early', 'w').write('x')\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ["STRONGROOM_HOME"] = str(home.path)
        command = [sys.executable, "-m", "strongroom", "run", "--", "python", "slow.py"]
        os.execv(sys.executable, command)  # noqa: S606  # the test's own child
    shown = b""
    try:
        while b"ready" not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        while data := os.read(terminal, 4096):
            shown += data
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130, shown
    assert b"sealed 1 file" in shown
