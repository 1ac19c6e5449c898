"""What bounds a program besides its sandbox: limits, streams that are sealed, the size of its terminal."""

import argparse
import fcntl
import os
import signal
import struct
import termios

import pytest

from strongroom.cas.policy.version import VaultRule, parse_policy
from strongroom.cli.run.words import LOG, limits
from strongroom.enclave.config import BootConfig
from strongroom.enclave.gramine import gramine_config
from strongroom.enclave.limits import Limits, make_group
from strongroom.errors import EnclaveError, UsageError
from tests.enclave import conftest


def test_more_memory_than_allowed_is_an_error_that_says_so(world, bubblewrap):
    limits = Limits(memory=512 << 20, cpus=1.0)
    with_groups = make_group(limits)
    with_groups.close()
    job = world.job("print(len(bytearray(700 << 20)))")
    if with_groups.data is not None:  # no control group: the program gets the error
        assert job.run(limits=limits) == (1, "")
        return
    with pytest.raises(EnclaveError, match="memory: the enclave took more than its limit"):
        job.run(limits=limits)
    assert not any(directory.exists() for directory in with_groups.directories)


def test_without_control_groups_there_are_other_limits_and_a_notice(monkeypatch):
    from strongroom.enclave import limits as module

    monkeypatch.setattr(module, "_mounts", lambda proc: [])
    group = make_group(Limits(memory=1 << 30, cpus=0.5))
    assert (group.data, len(group.processors)) == (1 << 20, 1)
    assert ["each process by itself" in note for note in group.notes] == [True, False]
    before = os.sched_getaffinity(0)
    with group.processors_of_children():
        assert os.sched_getaffinity(0) == group.processors
    assert os.sched_getaffinity(0) == before
    assert group.entered(["true"])[-1] == "true"
    assert make_group(Limits()).entered(["true"]) == ["true"]


@pytest.mark.parametrize(
    ("memory", "cpus", "wanted"),
    [
        ("512M", "2", Limits(512 << 20, 2.0)),
        ("1.5G", "0.5", Limits(3 << 29, 0.5)),
        ("4GiB", None, Limits(4 << 30)),
        (None, None, Limits()),
    ],
)
def test_sizes_and_numbers_of_processors(memory, cpus, wanted):
    assert limits(argparse.Namespace(memory=memory, cpus=cpus)) == wanted


@pytest.mark.parametrize(("memory", "cpus"), [("1", None), ("much", None), ("-4G", None), (None, "0"), (None, "1e3")])
def test_what_is_no_size_is_refused(memory, cpus):
    with pytest.raises(UsageError, match=r"--memory|--cpus"):
        limits(argparse.Namespace(memory=memory, cpus=cpus))


@pytest.mark.parametrize("quiet", [False, True])
def test_what_a_program_prints_is_sealed(world, bubblewrap, quiet, monkeypatch):
    real = conftest.boot_config
    monkeypatch.setattr(conftest, "boot_config", lambda *words, **options: real(*words, **options, quiet=quiet))
    log = world.seal(LOG)
    rules = (VaultRule(LOG, "", "read-write"),)
    job = world.job("import sys; print('told'); sys.exit('wrong')", rules=rules, vaults={LOG: log})
    # Without code that the launcher keeps: else all that is imported may be kept, and there is nothing to tell.
    assert job.run(compiled=None) == (1, "" if quiet else "told\n")
    assert ("imported" in dict(job.events)) is not quiet  # names of modules are told by a program that may tell
    with world.owner() as client:
        log.anchor.advance(log.anchor.read(), client.anchor(job.policy.name, LOG).read())
    with log.open() as opened:
        said = {path: opened.read_bytes(path) for path in opened.files()}
    assert said == {"000001/stdout": b"told\n", "000001/stderr": b"wrong\n"}


def test_a_log_is_sealed_in_a_sandbox_only():
    config = BootConfig("m", "a/b", "sha256:" + "0" * 64, "program", ("python",), log=LOG, quiet=True)
    assert BootConfig.from_bytes(config.to_bytes()) == config
    with pytest.raises(UsageError, match="log"):
        gramine_config(config)


HOST = """
[policy]
name = "acme/shared"
version = 1
owner = "{owner}"
role = "program"
[reference]
tees = ["simulated"]
measurements = ["{measurement}"]
allow_simulated = "{vendor}"
[program]
command = ["python", "job.py"]
files = ["job.py"]
[[paths]]
path = "/shared"
rule = "host"
"""


def test_a_directory_of_the_hosts_shows_where_the_policy_says_so(world, bubblewrap, tmp_path):
    script, shared = tmp_path / "job.py", tmp_path / "shared"
    script.write_text("print(open('/shared/given').read()); open('/shared/made', 'w').write('out')")
    shared.mkdir()
    (shared / "given").write_text("in")
    values = {"owner": world.home.owner().public.fingerprint, "vendor": world.home.vendor().root_digest}
    draft = parse_policy(HOST.format(**values, measurement="0" * 96))
    config = conftest.boot_config(draft.name, world.cas, draft.program, (), policy=draft)
    files = {"job.py": script}
    with world.owner() as client:
        policy = client.apply(HOST.format(**values, measurement=conftest.measured(config, files).value))
    job = conftest.Job(world, files, config, policy, {})
    for wrong in ({}, {"/shared": script}, {"/shared": shared, "/other": shared}):
        with pytest.raises(UsageError, match=r"host.path"):
            job.launch(hosts=wrong)
    assert job.run(hosts={"/shared": shared}) == (0, "in\n")
    assert (shared / "made").read_text() == "out"


def test_a_terminal_has_its_size_and_a_change_arrives(world, bubblewrap):
    source = """
import os, signal, sys
# Not print: the signal may arrive within the print below, whose buffer cannot be entered twice.
signal.signal(signal.SIGWINCH, lambda *a: (os.write(1, f"{os.get_terminal_size(0)}\\n".encode()), os._exit(0)))
print(os.isatty(0), os.get_terminal_size(0), flush=True)
while True: signal.pause()
"""
    job = world.job(source)
    ours, terminal = os.openpty()
    standard, (read, write) = os.dup(0), os.pipe()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 33, 101, 0, 0))
        os.dup2(terminal, 0)
        enclave = job.launch(stdout=write)
        os.close(write)
        with os.fdopen(read) as lines:
            assert lines.readline() == "True os.terminal_size(columns=101, lines=33)\n"
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 80, 0, 0))
            enclave.signal(signal.SIGWINCH)
            assert lines.readline() == "os.terminal_size(columns=80, lines=40)\n"
        assert enclave.wait() == 0
    finally:
        os.dup2(standard, 0)
        for descriptor in (ours, terminal, standard):
            os.close(descriptor)
