"""`strongroom mpc`: three real processes, how they end together, and what is refused before they begin."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from strongroom.channel import bind
from strongroom.cli.main import main
from strongroom.errors import FormatError, PolicyError, UsageError
from strongroom.mpc import certificates

pytest.importorskip("torch", reason="computing on shares needs PyTorch: it is not tested")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix sockets")

PROGRAM = """
import os, sys, time, torch
from strongroom import mpc

rank = int(os.environ["STRONGROOM_MPC_RANK"])
print("party", rank, sys.argv[1:], __name__, flush=True)
x = mpc.share(lambda: torch.tensor([1.0, -2.0]), source=0, shape=(2,))
what = sys.argv[1:2]
if what == ["wait"]:
    time.sleep(600)
if rank == 1 and what == ["raise"]:
    raise ZeroDivisionError("of mine")
if rank == 1 and what == ["die"]:
    os.kill(os.getpid(), 9)
y = mpc.reveal(x.relu(), to=0)
if rank == 0:
    print("revealed", y.tolist())
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where directories for temporary files are made: short, for sockets lie there."""
    with tempfile.TemporaryDirectory(prefix="sr-") as path:
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)


def start(*words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "strongroom", "mpc", "run", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so does what they start.
        preexec_fn=None if sys.platform == "win32" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **more,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        process.kill()  # the parties end with their launcher
        raise
    return process.returncode, out, err


def running(marker):
    """The processes on this machine whose command line holds a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(marker) in path.read_bytes().decode(errors="replace"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


# Three processes


def test_a_program_runs_as_three_parties_of_one_trust_domain(program, temporary, tmp_path):
    report, audit = tmp_path / "report.json", tmp_path / "audit"
    options = ["--show", "all", "--settings", "frac=12,exact", "--report", report, "--audit", audit]
    status, out, err = finish(start(*options, program, "--show", "mine"))
    assert status == 0, err
    lines = sorted(out.splitlines())
    assert lines == [
        "D  | party 2 ['--show', 'mine'] __main__",
        "P0 | party 0 ['--show', 'mine'] __main__",
        "P0 | revealed [1.0, 0.0]",
        "P1 | party 1 ['--show', 'mine'] __main__",
    ]
    assert err.count("one trust domain") == 1
    parties = json.loads(report.read_text())["parties"]
    assert list(parties) == ["P0", "P1", "D"]
    assert parties["P0"]["settings"] == "frac=12 bound=15 exact=1"
    assert parties["P0"]["sent"]["P1"] == parties["P1"]["received"]["P0"] > 0
    assert [(each["to"], each["shape"]) for each in parties["P1"]["reveals"]] == [(["P0"], [2])]
    assert all((tmp_path / f"audit.{name}").exists() for name in ("P0", "P1"))
    assert not list(temporary.iterdir())


def test_an_exception_is_shown_as_python_shows_it_and_the_others_say_whose_it_was(program, temporary):
    status, out, err = finish(start(program, "raise"))
    assert status == 1
    assert out == "party 0 ['raise'] __main__\n"
    assert "strongroom: error: P1: ended: ZeroDivisionError\n" in err
    trace = [line.removeprefix("P1 | ") for line in err.splitlines() if line.startswith("P1 | ")]
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[1].startswith(f'  File "{program}", line ')
    assert trace[-1] == "ZeroDivisionError: of mine"
    assert err.count("Traceback") == 1
    assert err.endswith("strongroom: error: P1: ended with status 1\n")
    assert not list(temporary.iterdir())


@pytest.mark.slow  # each process imports torch
def test_a_killed_party_ends_the_others(program, temporary):
    status, _, err = finish(start(program, "die"))
    assert status == 128 + signal.SIGKILL
    assert "strongroom: error: P1: was killed by SIGKILL\n" in err
    assert "strongroom: error: P1: " in err
    assert "Traceback" not in err
    assert not running(program)
    assert not list(temporary.iterdir())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)]
)
def test_no_party_outlives_its_launcher(program, temporary, number, expected):
    """Neither Ctrl-C nor the launcher's own sudden death leaves a process; the first leaves no file either."""
    process = start(program, "wait")
    assert process.stdout.readline().startswith("party 0")
    assert len(running(program)) == 4
    process.send_signal(number)
    status, _, err = finish(process)
    assert status == expected
    assert "Traceback" not in err
    limit = time.monotonic() + 60
    while running(program) and time.monotonic() < limit:
        os.sched_yield()
    assert not running(program)
    assert number == signal.SIGKILL or not list(temporary.iterdir())


# One party a host


@pytest.mark.slow  # each process imports torch
def test_three_parties_over_tls_find_that_one_runs_another_program(tmp_path):
    """The same peers file and certificates: first with one program, then with one byte changed at P1."""
    certificates_at = tmp_path / "certificates"
    assert main(["mpc", "certificates", str(certificates_at), "--client", "alice"]) == 0
    program, other = tmp_path / "program.py", tmp_path / "other.py"
    program.write_text("print('hello')\n")
    other.write_text("print('hallo')\n")
    free = [bind("127.0.0.1", 0) for _ in range(2)]
    ports = [sock.getsockname()[1] for sock in free]
    for sock in free:
        sock.close()
    peers = tmp_path / "peers.toml"
    peers.write_text(
        f'certificates = "certificates"\n[parties]\nP0 = "127.0.0.1:{ports[0]}"\nP1 = "127.0.0.1:{ports[1]}"\n'
    )

    def run(at_p1):
        processes = [
            start("--rank", name, "--peers", peers, "--wait", 100, at_p1 if name == "P1" else program)
            for name in ("P0", "P1", "D")
        ]
        return [finish(process) for process in processes]

    assert run(program) == [(0, "hello\n", "")] * 3
    ended = run(other)
    assert [status for status, _, _ in ended] == [80] * 3
    assert all("hello" not in out for _, out, _ in ended)
    assert "P1: runs another program than P0: SHA-256 " in ended[0][2]
    assert "P0: runs another program than P1: SHA-256 " in ended[1][2]
    assert "runs another program than" in ended[2][2]


def refused(capfd, *words):
    status = main(["mpc", *map(str, words)])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("strongroom: error: ")]
    return status, lines[0].removeprefix("strongroom: error: ") if lines else ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[parties]\nP0 = "a:1"', "[parties]: P1 is missing"),
        ("", "[parties]: P0 is missing"),
        ('[parties]\nP0 = "a:1"\nP1 = "b"', "P1: got 'b', wanted HOST:PORT"),
        ('[parties]\nP0 = "a:1"\nP1 = "::1:2"', "P1: got '::1:2', wanted HOST:PORT"),
        ('[parties]\nP0 = "a:1"\nP1 = "b:99999"', "P1: got 'b:99999', wanted HOST:PORT"),
        ('[parties]\nP0 = "a:1"\nP1 = "b:2"\nP2 = "c:3"', "[parties]: got P2, wanted P0, P1, D"),
        ('[parties]\nP0 = "a:1"\nP1 = "b:2"\n[settings]\nfrak = 3', "[settings]: got frak"),
        ("parties = 3", "parties: got 3, wanted a table"),
        ("[parties", "Expected"),
    ],
)
def test_a_peers_file_that_says_too_little_or_too_much(text, message, program, tmp_path, capfd):
    peers = tmp_path / "peers.toml"
    peers.write_text(text)
    status, line = refused(capfd, "run", "--rank", "P0", "--peers", peers, program)
    assert status == FormatError.exit_code
    assert line.startswith(f"peers: {peers}: {message}")


def test_certificates_that_are_missing_or_another_party_s(program, tmp_path, capfd):
    peers = tmp_path / "peers.toml"
    peers.write_text('[parties]\nP0 = "127.0.0.1:1"\nP1 = "127.0.0.1:2"')
    run = ("run", "--rank", "D", "--peers", peers)
    assert refused(capfd, *run, program) == (2, f"certificates: {peers} names none")
    assert main(["mpc", "certificates", str(tmp_path / "c")]) == 0
    told = capfd.readouterr()
    assert "P1" in told.out
    assert "keep it apart, or delete it" in told.err
    status, line = refused(capfd, *run, "--certificates", tmp_path / "c" / "P1", program)
    assert (status, line) == (2, f"certificates: {tmp_path / 'c' / 'P1'} is not D's")
    assert (tmp_path / "c" / "authority" / "authority.key").stat().st_mode & 0o777 == 0o600
    assert main(["mpc", "certificates", str(tmp_path / "c"), "--add", "--client", "bob"]) == 0
    assert certificates.Credentials.load(tmp_path / "c" / "client-bob")
    assert refused(capfd, "certificates", tmp_path / "c")[0] == UsageError.exit_code


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "program: none was given"),
        (["run", "missing.py"], "program: missing.py is no file"),
        (["run", "-m", "no.such.module"], "program: there is no module no.such.module in Python"),
        (["run", "--show", "P3", "PROGRAM"], "--show: got 'P3', wanted some of P0, P1 and D, or all"),
        (["run", "--rank", "P3", "--sockets", ".", "PROGRAM"], "--rank: got 'P3', wanted P0, P1 or D"),
        (["run", "--rank", "P0", "PROGRAM"], "--rank: wanted either --peers FILE or --sockets DIR"),
        (["run", "--peers", "x.toml", "PROGRAM"], "--peers: is for one party of three"),
        (["run", "--timeout", "0", "PROGRAM"], "--timeout: got 0, wanted more than 0"),
        (
            ["run", "--rank", "D", "--sockets", ".", "--settings", "f=1", "PROGRAM"],
            "settings: got 'f=1', wanted some of",
        ),
        (["run", "--rank", "D", "--sockets", ".", "--settings", "frac=99", "PROGRAM"], "fractional bits: got 99"),
        (["run", "--enclave", "PROGRAM"], "--enclave: is for the dealer alone"),
        (["run", "--dealer-policy", "x", "PROGRAM"], "--dealer-policy: is for one party of three"),
        (["run", "--endorsements", "x", "PROGRAM"], "--endorsements: is for one party of three"),
        (
            ["run", "--rank", "P0", "--sockets", ".", "--endorsements", "x", "PROGRAM"],
            "--endorsements: are for appraising",
        ),
        (["run", "--rank", "P0", "--sockets", ".", "--enclave", "PROGRAM"], "--enclave: is for the dealer"),
        (["run", "--rank", "D", "--sockets", ".", "--dealer-policy", "x", "PROGRAM"], "--dealer-policy: is for the"),
        (["run", "--rank", "D", "--sockets", ".", "--dealer-enclave", "PROGRAM"], "--dealer-enclave: is for three"),
        (["run", "--include", "x", "PROGRAM"], "--include: is for a dealer in an enclave"),
        (["run", "--settings", "f=1", "PROGRAM"], "settings: got 'f=1', wanted some of"),
        (["run", "--policy", "no.toml", "PROGRAM"], "no.toml: no such file"),
        (["run", "--audit", "no/a", "PROGRAM"], "--audit: "),
        (["run", "--report", "no/r.json", "PROGRAM"], "--report: "),
        (["run", "--report", ".", "PROGRAM"], "--report: . cannot be written"),
        (["measure"], "program: none was given"),
        (["certificates", "c", "--add"], "--add: for whom"),
        (["certificates", "c", "--add", "--client", "bob"], "authority: c/authority holds no authority.key"),
        (["certificates", "c", "--client", "../bob"], "client: got '../bob'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_words_that_make_no_sense(words, message, program, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, line = refused(capfd, *(program if word == "PROGRAM" else word for word in words))
    assert status in (UsageError.exit_code, 11)
    assert line.startswith(message)


def test_a_policy_and_a_log_are_read_before_the_others_are_waited_for(program, tmp_path, capfd, monkeypatch):
    def join(*args):
        raise AssertionError("it waited for the others")

    monkeypatch.setattr("strongroom.cli.mpc.party._join", join)
    monkeypatch.setenv("STRONGROOM_MPC_RANK", "")  # and afterwards as it was
    (tmp_path / "policy.toml").write_text("version = 2")
    (tmp_path / "log").write_text("no log\n")
    run = ("run", "--rank", "P0", "--sockets", tmp_path)
    status, line = refused(capfd, *run, "--policy", tmp_path / "policy.toml", program)
    assert status == PolicyError.exit_code and line.endswith("policy.toml: version: got 2, wanted 1")
    status, line = refused(capfd, *run, "--audit", tmp_path / "log", program)
    assert status == FormatError.exit_code and line.endswith("line 1: is no record")


def test_an_unknown_option_is_answered_with_the_action_s_usage(capfd):
    for words, usage in ((["mpc", "run", "--bogus"], "mpc run [OPTIONS] SCRIPT"), (["doctor", "--bogus"], "doctor ")):
        with pytest.raises(SystemExit):
            main(words)
        err = capfd.readouterr().err
        assert err.startswith(f"usage: strongroom {usage}") and "unrecognized arguments: --bogus" in err


def test_without_an_action_it_says_what_there_is(capfd):
    assert main(["mpc"]) == 2
    out = capfd.readouterr().out
    assert all(f"\n    {action} " in out or f"\n    {action}\n" in out for action in ("run", "certificates", "audit"))


def test_help_needs_no_torch():
    """Neither its own nor what it imports."""
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom strongroom.cli.main import main\n"
        "try: main(['mpc', 'run', '--help'])\nexcept SystemExit as error: sys.exit(error.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "STRONGROOM_MPC_RANK" in done.stdout
