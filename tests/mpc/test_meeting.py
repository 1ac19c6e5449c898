"""How parties meet: in any order, past strangers, and what they are told when they do not."""

import contextlib
import datetime as dt
import socket
import threading
import time

import numpy as np
import pytest

from strongroom.channel import Channel, bind
from strongroom.errors import ChannelError, MpcError, PeerIdentityError, PolicyError, StrongroomError, UsageError
from strongroom.mpc import certificates
from strongroom.mpc.connect import join_tcp, join_unix
from strongroom.mpc.door import PATIENCE, Door, Guest
from strongroom.mpc.party import Party
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.ring import Settings

NOW = dt.datetime.now(dt.UTC)
SOON = PATIENCE / 2  # a party that waits for a stranger's time-out is late


@pytest.fixture
def places(tmp_path):
    return certificates.create(tmp_path / "certificates", now=NOW)


@pytest.fixture
def servers():
    """Listening sockets of both servers, and their addresses."""
    listening = [bind("127.0.0.1", 0) for _ in range(2)]
    yield listening, {rank: sock.getsockname()[:2] for rank, sock in enumerate(listening)}
    for sock in listening:
        sock.close()


def program(party):
    x = share(party, lambda: np.arange(4.0), source=0, shape=(4,))
    return reveal(x, to=[1])


def run(join, ranks=range(3)):
    """What each of these parties returned or raised, in threads."""
    outcomes = {}

    def one(rank):
        try:
            with join(rank) as party:
                outcomes[rank] = program(party)
        except StrongroomError as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def over_tcp(servers, places, **more):
    listening, addresses = servers

    def join(rank):
        listen = listening[rank] if rank < 2 else None
        return join_tcp(rank, addresses, places[rank], Settings(seconds=20), listen=listen, **more)

    return join


def met(outcomes):
    return list(outcomes[1]) == [0, 1, 2, 3] and outcomes[0] is None and outcomes[2] is None


def test_strangers_who_say_nothing_delay_nobody(servers, places):
    strangers = [socket.create_connection(address) for address in servers[1].values() for _ in range(3)]
    assert met(run(over_tcp(servers, places, wait=SOON)))
    for stranger in strangers:
        stranger.close()


def test_strangers_at_unix_sockets_delay_nobody(tmp_path):
    tmp_path.chmod(0o700)
    here = threading.Event()

    def join(rank):
        if rank:
            here.wait(20)
        return join_unix(rank, tmp_path, Settings(seconds=20), wait=SOON)

    def strangers():
        path = tmp_path / "P0.sock"
        while not path.exists():
            pass
        silent = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for each in silent:
            while each.connect_ex(str(path)):
                pass
        silent[0].sendall(b"\x09")
        here.set()
        return silent

    found = []
    thread = threading.Thread(target=lambda: found.extend(strangers()))
    thread.start()
    assert met(run(join))
    thread.join()
    for each in found:
        each.close()


def test_more_strangers_than_are_heard_at_once_make_room_for_a_guest():
    """The door keeps the newest, so that who says its name at once gets in whatever the crowd."""

    def greet(sock):
        name = sock.recv(1)
        if not name:
            raise PeerIdentityError("said nothing")
        return Guest(name[0], Channel(sock, "guest", seconds=5), sock)

    with bind("127.0.0.1", 0) as listener, Door(listener, greet) as door:
        crowd = [socket.create_connection(listener.getsockname()) for _ in range(80)]
        with socket.create_connection(listener.getsockname()) as guest:
            guest.sendall(b"\x02")
            found = door.next(time.monotonic() + SOON)
        assert found is not None
        assert found.rank == 2
        assert door.refused == "said nothing"
        found.channel.close()
        for each in crowd:
            each.close()


def test_no_more_strangers_are_heard_at_once_however_many_come():
    """Each that makes room has left before another is heard."""
    inside, most, lock = set(), [], threading.Lock()

    def greet(sock):
        with lock:
            inside.add(sock)
            most.append(len(inside))
        try:
            name = sock.recv(1)
        finally:
            with lock:
                inside.remove(sock)
        if not name:
            raise PeerIdentityError("said nothing")
        return Guest(name[0], Channel(sock, "guest", seconds=5), sock)

    with bind("127.0.0.1", 0) as listener, Door(listener, greet) as door, contextlib.ExitStack() as crowd:

        def come():
            for _ in range(200):
                crowd.enter_context(socket.create_connection(listener.getsockname()))
            crowd.enter_context(socket.create_connection(listener.getsockname())).sendall(b"\x02")

        thread = threading.Thread(target=come)
        thread.start()
        found = door.next(time.monotonic() + 4 * SOON)
        thread.join()
        assert found is not None and found.rank == 2
        found.channel.close()
    assert len(most) == 201 and max(most) == 64


def test_a_server_may_be_the_last_to_start(servers, places):
    listening, addresses = servers
    listening[0].close()
    others_wait = threading.Event()

    def join(rank):
        if rank == 0:
            others_wait.wait(20)
            return join_tcp(0, addresses, places[0], Settings(seconds=20))
        if rank == 2:
            others_wait.set()
        return join_tcp(rank, addresses, places[rank], Settings(seconds=20), listen=listening[1] if rank == 1 else None)

    assert met(run(join))


def test_a_party_that_begins_anew_before_all_are_there_is_taken_again(servers, places):
    """The dealer's first attempt dies after it met P0, while P1 is missing."""
    _, addresses = servers
    join, outcomes = over_tcp(servers, places), {}
    thread = threading.Thread(target=lambda: outcomes.update(run(join, ranks=[0])))
    thread.start()
    with bind("127.0.0.1", 0) as nobody, pytest.raises(ChannelError, match="P1: not reached"):
        join_tcp(2, {**addresses, 1: nobody.getsockname()}, places[2], Settings(seconds=20), wait=0.3)
    outcomes |= run(join, ranks=[1, 2])
    thread.join()
    assert met(outcomes)


def test_who_is_missing_is_named(servers, places):
    outcomes = run(over_tcp(servers, places, wait=0.5), ranks=[0])
    assert isinstance(outcomes[0], ChannelError)
    assert outcomes[0].message == "P1 and D: did not connect in time"
    with pytest.raises(ChannelError, match="P0: not reached: connection refused"):
        join_tcp(2, servers[1], places[2], wait=0.1)


def test_a_stranger_s_fault_is_in_the_hint(servers, places, tmp_path):
    """P0 says why it let nobody in: that is where the wrong certificate of P1's host is found."""
    others = certificates.create(tmp_path / "others", now=NOW)
    with pytest.raises(PeerIdentityError, match="P0: peer authority: got sha256:") as refused:
        outcomes = {}
        thread = threading.Thread(
            target=lambda: outcomes.update(run(over_tcp(servers, places, wait=1), ranks=[0])), daemon=True
        )
        thread.start()
        join_tcp(1, servers[1], others[1], Settings(seconds=20), listen=servers[0][1])
    assert "made together" in refused.value.hint
    thread.join()
    assert outcomes[0].message == "P1 and D: did not connect in time"
    assert "came and was refused: P1: peer authority: got sha256:" in outcomes[0].hint


@pytest.mark.parametrize("differs", [1, 2])
def test_another_program_is_found_before_anything_is_shared_and_named(tmp_path, differs):
    tmp_path.chmod(0o700)
    ours, theirs = b"\x11" * 32, b"\x22" * 32

    def join(rank):
        return join_unix(rank, tmp_path, Settings(seconds=20), program=theirs if rank == differs else ours)

    outcomes = run(join)
    assert all(isinstance(error, MpcError) for error in outcomes.values())
    name = ("P0", "P1", "D")[differs]
    assert outcomes[0].message.endswith(
        f"{name}: runs another program than P0: SHA-256 2222222222222222..., wanted 1111111111111111..."
    )


def test_a_programs_digest_is_one():
    left, right = socket.socketpair()
    with right, pytest.raises(UsageError, match="got a digest of 5 bytes, wanted 32"):
        Party(0, {1: Channel(left, "P1", seconds=5)}, program=b"short")


# Certificates


def test_clients_get_certificates_from_an_authority_that_was_kept(tmp_path):
    home, authority = tmp_path / "c", tmp_path / "c" / "authority"
    places = certificates.create(home, now=NOW, clients=["alice"], authority=authority)
    assert [place.name for place in places] == ["P0", "P1", "D", "client-alice"]
    bob = certificates.add_client(home, "bob", authority=authority, now=NOW)
    for place, name in ((places[3], "alice"), (bob, "bob")):
        credentials = certificates.Credentials.load(place)
        assert certificates.named_client(credentials.identity.chain) == name
        assert certificates.named(credentials.identity.chain) is None
        assert credentials.authority == certificates.Credentials.load(places[0]).authority
    for key in (bob / "party.key", authority / "authority.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    assert not [path for path in (places[0]).iterdir() if "authority" in path.name]
    with pytest.raises(UsageError, match="client-bob exists"):
        certificates.add_client(home, "bob", authority=authority, now=NOW)
    with pytest.raises(PolicyError, match="client: got"):
        certificates.add_client(home, "../eve", authority=authority, now=NOW)
    (authority / "authority.key").unlink()
    with pytest.raises(UsageError, match=r"holds no authority\.key"):
        certificates.add_client(home, "eve", authority=authority, now=NOW)


def test_a_client_is_no_party(servers, tmp_path):
    places = certificates.create(tmp_path, now=NOW, clients=["alice"])
    with pytest.raises(UsageError, match="is not P1's"):
        join_tcp(1, servers[1], places[3])
