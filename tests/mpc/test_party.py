"""Three parties: how they meet, what ends an epoch, and what each of them is told then."""

import copy
import datetime as dt
import os
import pickle
import socket
import struct
import threading

import numpy as np
import pytest

from strongroom.channel import Channel, bind
from strongroom.errors import ChannelError, DivergedError, MpcError, PeerIdentityError, StrongroomError, UsageError
from strongroom.mpc import certificates
from strongroom.mpc.connect import join_tcp, join_unix
from strongroom.mpc.party import Party
from strongroom.mpc.protocols.linear import matmul
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import Settings
from strongroom.mpc.threads import Raised, run_each, run_local
from tests.mpc.parties import integers, opened

NOW = dt.datetime.now(dt.UTC)
X = np.linspace(-4, 4, 24).reshape(4, 6)


def layer(party):
    x = share(party, lambda: X, source=0, shape=X.shape)
    return reveal(relu(matmul(x, x.T)), to=[0])


def errors_of(programs, settings=None):
    outcomes = run_each(programs, settings or [Settings(seconds=20)] * 3)
    return [outcome.error if isinstance(outcome, Raised) else None for outcome in outcomes]


def in_threads(join):
    """Run a join and a layer as each party; what each returned or raised."""
    outcomes = [None] * 3

    def run(rank):
        try:
            with join(rank) as party:
                outcomes[rank] = layer(party)
        except StrongroomError as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


# Meeting


def test_parties_meet_at_unix_sockets_that_are_theirs_alone(tmp_path):
    tmp_path.chmod(0o700)
    outcomes = in_threads(lambda rank: join_unix(rank, tmp_path))
    assert np.abs(outcomes[0] - np.maximum(X @ X.T, 0)).max() < 1e-3
    assert not list(tmp_path.iterdir())


def test_a_directory_that_will_not_do_is_refused_at_once(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(UsageError, match="open to others"):
        join_unix(0, tmp_path)
    tmp_path.chmod(0o700)
    (tmp_path / "P0.sock").touch()
    with pytest.raises(UsageError, match=r"P0\.sock: address already in use"):
        join_unix(0, tmp_path)
    with pytest.raises(UsageError, match="longer than 90 bytes"):
        join_unix(1, tmp_path / ("x" * 100))


def over_tcp(directories):
    listening = [bind("127.0.0.1", 0) for _ in range(2)]
    addresses = {rank: sock.getsockname()[:2] for rank, sock in enumerate(listening)}
    settings = Settings(seconds=20)

    def join(rank):
        return join_tcp(rank, addresses, directories[rank], settings, listen=listening[rank] if rank < 2 else None)

    return join, addresses


def test_parties_meet_over_tls(tmp_path):
    join, _ = over_tcp(certificates.create(tmp_path / "all", now=NOW))
    outcomes = in_threads(join)
    assert np.abs(outcomes[0] - np.maximum(X @ X.T, 0)).max() < 1e-3
    key = tmp_path / "all" / "D" / "party.key"
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists"):
        certificates.create(tmp_path / "all", now=NOW)


def test_megabytes_go_over_tls_in_all_directions(tmp_path):
    join, _ = over_tcp(certificates.create(tmp_path, now=NOW))
    values = np.linspace(-100, 100, 1 << 17)
    outcomes = [None] * 3

    def run(rank):
        with join(rank) as party:
            x = share(party, lambda: values, source=0, shape=values.shape)
            outcomes[rank] = reveal(relu(x), to=[0, 1])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.abs(outcomes[rank] - np.maximum(values, 0)).max() < 2.0**-16 for rank in (0, 1))


def test_strangers_at_the_door_do_not_keep_the_parties_apart(tmp_path):
    join, addresses = over_tcp(certificates.create(tmp_path, now=NOW))
    with socket.create_connection(addresses[0]) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        outcomes = in_threads(join)
    assert np.abs(outcomes[0] - np.maximum(X @ X.T, 0)).max() < 1e-3


def test_a_dealer_takes_no_server_of_another_authority(tmp_path):
    ours, theirs = (certificates.create(tmp_path / name, now=NOW) for name in ("ours", "theirs"))
    listener = bind("127.0.0.1", 0)
    addresses = {0: listener.getsockname()[:2], 1: listener.getsockname()[:2]}

    def impostor():
        try:
            join_tcp(0, addresses, theirs[0], Settings(seconds=1), listen=listener)
        except ChannelError as error:
            assert "did not connect in time" in error.message  # in a thread

    thread = threading.Thread(target=impostor)
    thread.start()
    with pytest.raises(PeerIdentityError, match="peer authority"):
        join_tcp(2, addresses, ours[2], Settings(seconds=20))
    thread.join()


def test_a_directory_of_another_party_is_refused(tmp_path):
    places = certificates.create(tmp_path, now=NOW)
    with pytest.raises(UsageError, match="is not P1's"):
        join_tcp(1, {0: ("127.0.0.1", 1), 1: ("127.0.0.1", 1)}, places[0])


def test_who_never_comes_is_named(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(ChannelError, match="P0: not reached"):
        join_unix(1, tmp_path, Settings(seconds=0.1))


def test_other_settings_are_found_before_anything_is_shared():
    errors = errors_of([layer] * 3, [Settings(), Settings(frac=20, bound=10), Settings()])
    assert all(isinstance(error, MpcError) for error in errors)
    assert any("has other settings or another version" in error.message for error in errors)


# The dealer works ahead


def test_the_dealer_is_done_before_the_servers_begin():
    dealt = threading.Event()

    def program(party):
        x = integers(party, np.full(1 << 16, -5), frac=16)
        if not party.is_dealer:
            dealt.wait(20)
        y = relu(x)
        if party.is_dealer:
            assert party.peers[1].sent > 3_000_000
            dealt.set()
        return y

    assert not opened(run_local(program)).any()
    assert dealt.is_set()


def test_a_dealer_too_far_ahead_waits_and_in_the_end_gives_up():
    gone = threading.Event()

    def program(party):
        x = integers(party, np.zeros(1 << 16), frac=16)
        if not party.is_dealer:
            gone.wait(20)
        try:
            for _ in range(8):
                x = relu(x)
        finally:
            gone.set()

    settings = Settings(seconds=20)
    errors = errors_of([program] * 3, [settings, settings, Settings(seconds=0.2)])
    assert errors[2].message == "P1: took nothing for 0.2 s"
    assert all(isinstance(error, StrongroomError) for error in errors)


# Programs that differ


def diverge(*programs):
    """What each party is told when P0, P1 and D run these."""

    def end(make):
        def program(party):
            x = share(party, lambda: X, source=0, shape=X.shape)
            make(party, x)

        return program

    return [error.message for error in errors_of([end(each) for each in programs]) if error]


def test_another_operation_is_named():
    messages = diverge(lambda p, x: relu(x), lambda p, x: truncate(x, 4), lambda p, x: relu(x))
    assert any("operation 2: P0 runs relu 4x6 16 0 33, P1 runs truncate 4x6 16 4 33 0" in each for each in messages)
    assert len(messages) == 3


def test_another_shape_is_named():
    messages = diverge(lambda p, x: relu(x), lambda p, x: relu(x[:3]), lambda p, x: relu(x))
    assert any("P0 runs relu 4x6 16 0 33, P1 runs part 4x6 slice(None, 3, None)" in each for each in messages)


def test_another_part_of_the_same_shape_is_named():
    messages = diverge(lambda p, x: relu(x[0]), lambda p, x: relu(x[1]), lambda p, x: relu(x[0]))
    assert any("operation 2: P0 runs part 4x6 0, P1 runs part 4x6 1" in each for each in messages)


def test_another_public_operand_is_named_though_it_differs_in_one_unit():
    one = X.copy()
    one[0, 0] += 2.0**-16
    messages = diverge(lambda p, x: relu(x + X), lambda p, x: relu(x + one), lambda p, x: relu(x + X))
    assert any("P0 runs add 4x6,4x6 16 public" in each and "P1 runs add" in each for each in messages)


def test_a_dealer_that_runs_another_program_is_named():
    messages = diverge(lambda p, x: relu(x), lambda p, x: relu(x), lambda p, x: truncate(x, 4))
    assert any("P1 runs relu" in each and "D runs truncate" in each for each in messages)
    assert len(messages) == 3


def test_a_program_that_goes_on_longer_is_found_at_the_end():
    messages = diverge(lambda p, x: None, lambda p, x: -x, lambda p, x: None)
    assert any("P0 runs finish, P1 runs neg" in each or "P1 runs neg" in each for each in messages)


def test_a_reveal_gives_nothing_away_when_programs_differ():
    recorded = []

    class Watch:
        def sent(self, rank, to, payload):
            recorded.append((rank, to, sum(part.nbytes for part in payload)))

        def drew(self, *_):
            pass

    def program(party):
        x = share(party, lambda: X, source=0, shape=X.shape)
        recorded.clear()
        reveal(x, to=[0] if party.first else [0, 1])

    outcomes = run_each([program] * 3, [Settings()] * 3, observer=Watch())
    assert isinstance(outcomes[0], Raised)
    assert isinstance(outcomes[0].error, DivergedError)
    assert all(size < X.size for _, _, size in recorded)


# Ends


def vanish(party):
    for peer in party.peers.values():
        peer._channel.close()


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_dead_party_is_a_clear_error_for_both_others(dead):
    def program(party):
        x = share(party, lambda: X, source=0, shape=X.shape)
        x = truncate(matmul(x, x.T))
        if party.rank == dead:
            vanish(party)
        return relu(x)

    errors = errors_of([program] * 3)
    name = ("P0", "P1", "D")[dead]
    for rank, error in enumerate(errors):
        assert isinstance(error, StrongroomError)
        assert rank == dead or f"{name}: " in error.message


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_what_is_raised_is_the_cause_and_no_connection_lost_by_it(dead):
    def program(party):
        x = share(party, lambda: X, source=0, shape=X.shape)
        if party.rank == dead:
            vanish(party)
            raise UsageError("this is why")
        return relu(x)

    with pytest.raises(UsageError, match="this is why"):
        run_local(program)


def test_a_party_that_raises_takes_the_others_along_and_says_why():
    def program(party):
        x = share(party, lambda: X, source=0, shape=X.shape)
        if party.rank == 1:
            raise KeyboardInterrupt
        return reveal(x, to=[0])

    errors = errors_of([program] * 3)
    assert isinstance(errors[1], KeyboardInterrupt)
    assert errors[0].message == "P1: ended: KeyboardInterrupt"
    assert "ended: KeyboardInterrupt" in errors[2].message


def test_nothing_is_tried_again_in_an_epoch_that_failed():
    def retry(party):
        x = share(party, lambda: X, source=0, shape=X.shape)
        try:
            share(party, lambda: np.full(3, np.nan), source=0, shape=(3,))
        except UsageError:
            relu(x)

    errors = errors_of([retry] * 3)
    assert "the epoch has ended: values: got nan" in errors[0].message
    assert "ended: values: got nan at [0]" in errors[1].message


def test_a_peer_that_stays_silent_runs_into_the_time_limit():
    left, right = socket.socketpair()
    with right:
        channel = Channel(left, "P1", seconds=0.05)
        with pytest.raises(ChannelError, match=r"P1: sent nothing for 0.05 s"):
            channel.recv_into(bytearray(1))
        channel.queue([bytes(1 << 24)])
        with pytest.raises(ChannelError, match=r"P1: took nothing for 0.05 s"):
            channel.flush()
        channel.close()


def test_megabytes_in_both_directions_at_once_do_not_block():
    channels = [Channel(sock, "peer", seconds=20) for sock in socket.socketpair()]
    data = [os.urandom(1 << 24) for _ in range(2)]
    got = [bytearray(1 << 24) for _ in range(2)]

    def run(i):
        channels[i].queue([data[i]])
        channels[i].recv_into(got[i])
        channels[i].flush()
        channels[i].close()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] == data[1]
    assert got[1] == data[0]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n......", "sent something that is no frame"),
        (struct.pack("<4sB3xQ16s", b"SRM1", 9, 0, b""), "sent something that is no frame"),
        (struct.pack("<4sB3xQ16s", b"SRM1", 2, 1 << 60, b""), "sent a text of 1152921504606846976 bytes"),
        (struct.pack("<4sB3xQ16s", b"SRM1", 1, 1 << 60, b""), "sent 1152921504606846976 bytes in one operation"),
        (struct.pack("<4sB3xQ16s", b"SRM1", 2, 3, b"") + b"\x1b[2", "ended:  \\[2"),
    ],
    ids=["not_a_frame", "unknown_kind", "endless_text", "endless_words", "control_characters"],
)
def test_frames_that_lie_are_refused_before_anything_is_allocated(frame, message):
    pairs = [socket.socketpair() for _ in range(2)]
    for _, theirs in pairs:
        theirs.sendall(frame)
        theirs.shutdown(socket.SHUT_WR)
    channels = {rank: Channel(pairs[rank - 1][0], f"P{rank}", seconds=5) for rank in (1, 2)}
    with pytest.raises(MpcError, match=message):
        Party(0, channels)
    for _, theirs in pairs:
        theirs.close()


def test_shares_and_streams_do_not_leave_by_pickle_or_repr():
    def program(party):
        x = integers(party, np.full(3, 0x1234567890))
        for leak in (pickle.dumps, copy.deepcopy, copy.copy):
            with pytest.raises(UsageError, match="cannot be pickled or copied"):
                leak(x)
        return repr(x), repr(party), repr(party.coins)

    assert run_local(program)[0] == ("Shared(3, frac=0)", "Party(P0)", "Stream(coins)")


def test_a_party_does_not_work_in_another_thread_or_a_forked_process(monkeypatch):
    def program(party):
        x = integers(party, np.zeros(3))
        found = []

        def elsewhere():
            try:
                relu(x, 0)
            except UsageError as error:
                found.append(error.message)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return found

    assert run_local(program)[0] == ["relu: a party belongs to the thread that made it"]

    def forked(party):
        monkeypatch.setattr(os, "getpid", lambda: -1)
        return relu(integers(party, np.zeros(3)), 0)

    with pytest.raises(UsageError, match="belongs to the thread"):
        run_local(forked)


def test_public_coins_are_common_and_a_ratchet_changes_every_stream_in_step():
    def program(party):
        first = party.coins.words(4)
        party.ratchet()
        x = integers(party, np.arange(5))
        return first, party.coins.words(4), matmul(x.reshape(1, 5), x.reshape(5, 1))

    results = run_local(program)
    for i in (0, 1):
        assert (results[0][i] == results[1][i]).all()
        assert (results[0][i] == results[2][i]).all()
    assert not (results[0][0] == results[0][1]).any()
    assert opened([each[2] for each in results]) == 30
