"""A program that forks: the child says nothing on its parent's channels, and writes nothing into its log."""

import datetime as dt
import os
import signal
import socket
import threading
import warnings

import pytest
import torch

from strongroom import mpc
from strongroom.channel import bind
from strongroom.errors import ChannelError, UsageError
from strongroom.mpc import certificates
from strongroom.mpc.audit import AuditLog, read
from strongroom.mpc.party import P0
from strongroom.mpc.tensor.world import current

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

_QUIET, _LOUD = 7, 9


class ChildError(Exception):
    pass


def fork():
    """As `os.fork`; a child that hangs is ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: the other two parties
        child = os.fork()
    if not child:
        signal.alarm(30)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def raises():
    raise ChildError


def is_refused():
    """The child finds that it can do nothing, and leaves the block as if all were well."""
    with pytest.raises(UsageError, match="belongs to the thread"):
        mpc.share(lambda: torch.ones(2), source=0, shape=(2,))
    for peer in current().party.peers.values():
        for use in (lambda c: c.queue([b"x"]), lambda c: c.recv_into(bytearray(1)), lambda c: c.flush()):
            with pytest.raises(ChannelError, match="the parent process's"):
                use(peer._channel)


def parties(tmp_path, program):
    """Run a program as all three over TLS: P0 in this thread, which is the one that forks."""
    places = certificates.create(tmp_path / "certificates", now=dt.datetime.now(dt.UTC))
    listening = [bind("127.0.0.1", 0) for _ in range(2)]
    addresses = {rank: sock.getsockname()[:2] for rank, sock in enumerate(listening)}
    results = [None] * 3

    def run(rank):
        listen = listening[rank] if rank < 2 else None
        joined = mpc.join_tcp(rank, addresses, places[rank], mpc.Settings(seconds=20), listen=listen)
        with joined as party, mpc.World(party, audit=tmp_path / f"P{rank}.audit"):
            results[rank] = program()

    others = [threading.Thread(target=run, args=(rank,)) for rank in (1, 2)]
    for thread in others:
        thread.start()
    try:
        run(P0)
    finally:
        for thread in others:
            thread.join()
    return results


@pytest.mark.parametrize("does", [raises, is_refused])
def test_a_fork_sends_and_logs_nothing_whatever_it_does(does, tmp_path):
    """TLS's counters are the parent's: a byte of the child's would be under a nonce that the parent uses too."""
    parent = os.getpid()

    def program():
        x = mpc.share(lambda: torch.ones(2), source=0, shape=(2,))
        mpc.reveal(x, to=0)
        if current().party.rank == P0:
            child = fork()
            if not child:
                does()
                return None
            assert ended(child) == _QUIET
        return mpc.reveal(x + x, to=(0, 1))

    try:
        results = parties(tmp_path, program)
    except ChildError:
        pass  # in the child; the parent's threads are not here
    finally:
        if os.getpid() != parent:
            os._exit(_QUIET if has_left() else _LOUD)
    assert results[0].tolist() == results[1].tolist() == [2, 2]
    for rank in (0, 1):
        assert [record.kind for record in read(tmp_path / f"P{rank}.audit").records] == [
            *("begin", "reveal", "reveal", "end")
        ]


def has_left():
    """Whether this thread is in no world any more."""
    try:
        current()
    except UsageError:
        return True
    return False


def test_a_fork_while_values_are_asked_for_shares_nothing(tmp_path):
    """The child comes back from the callback inside of an operation."""
    parent = os.getpid()

    def values():
        child = fork()
        if child:
            assert ended(child) == _QUIET
        return torch.ones(2) if child else torch.zeros(2)

    def program():
        x = mpc.share(values, source=0, shape=(2,))
        return mpc.reveal(x, to=(0, 1))

    code = _LOUD
    try:
        results = parties(tmp_path, program)
    except UsageError as error:
        code = _QUIET if error.message == "values: a party belongs to the thread that made it" else _LOUD
    finally:
        if os.getpid() != parent:
            os._exit(code)
    assert results[0].tolist() == results[1].tolist() == [1, 1]


def test_a_fork_does_not_close_its_parent_s_reception(tmp_path):
    tmp_path.chmod(0o700)
    with mpc.Reception.unix(0, tmp_path):
        child = fork()
        if child:
            assert ended(child) == _QUIET
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(next(tmp_path.iterdir())))
    if not child:
        os._exit(_QUIET)


def test_a_fork_cannot_add_to_a_log(tmp_path):
    parent = os.getpid()
    with AuditLog.open(tmp_path / "log") as log:
        log.add("begin", {"epoch": "e"})
        child = fork()
        if not child:
            code = _LOUD
            try:
                log.add("end", {"epoch": "e"})
            except UsageError:
                code = _QUIET
            finally:
                log.close()
                os._exit(code)
        assert ended(child) == _QUIET and os.getpid() == parent
        log.add("end", {"epoch": "e"})
    assert [record.kind for record in read(tmp_path / "log").records] == ["begin", "end"]
