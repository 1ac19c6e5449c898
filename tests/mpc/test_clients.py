"""A client that is no party gets the right answer, or a clear error, and tells nobody what it asked."""

import datetime as dt
import socket
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.channel import Channel, bind
from strongroom.errors import (
    ChannelError,
    DivergedError,
    FormatError,
    MpcError,
    PeerIdentityError,
    PolicyError,
    RefusedError,
    StrongroomError,
    UsageError,
)
from strongroom.mpc import Client, Reception, certificates
from strongroom.mpc import request as wire
from strongroom.mpc.audit import compare, read
from strongroom.mpc.client import socket_path
from strongroom.mpc.policy import Allow, Policy
from strongroom.mpc.reception import Arrival
from strongroom.mpc.tensor import serving as serving_module
from strongroom.mpc.tensor.world import current
from strongroom.mpc.threads import run_local

MODEL = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
X = np.random.default_rng(1).normal(size=(5, 4))


def architecture():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def plain(x):
    return MODEL(torch.as_tensor(x, dtype=torch.float32)).detach().numpy()


class Servers:
    """Three parties that serve in threads of this process, and how they ended."""

    def __init__(self, receptions):
        self.receptions, self.error, self.served, self.reveals = receptions, None, [], []


@contextmanager
def serving(receptions, *, observer=None, program=None, policy=None, audit=None, settings=None, **arguments):
    servers = Servers(receptions)

    def serve(party):
        with (
            mpc.World(party, policy=policy, audit=audit and audit / f"{party.rank}.audit") as world,
            receptions[party.rank] as reception,
        ):
            model = mpc.own(lambda: MODEL, source=1, like=architecture())
            run = program or mpc.serve
            servers.served.append(run(model, reception, **({"shape": (None, 4)} | arguments)))
            servers.reveals.append(world.reveals)

    def run():
        try:
            run_local(serve, settings, observer=observer)
        except BaseException as error:
            servers.error = error

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield servers
    finally:
        receptions[0].stop()
        thread.join()


@contextmanager
def local(directory, *, clients=None, **arguments):
    receptions = [Reception.unix(rank, directory, clients=clients) for rank in range(3)]
    with serving(receptions, **arguments) as servers:
        yield servers


def test_a_client_gets_the_model_s_answer_and_it_alone(tmp_path):
    with local(tmp_path) as servers:
        with Client.unix(tmp_path, "alice") as client:
            assert client.service.shape == (None, 4) and client.service.most == 256
            for x in (X, X[:1]):
                assert np.abs(client.predict(x) - plain(x)).max() < 1e-3
        with Client.unix(tmp_path, "bob") as client:
            assert np.abs(client.predict(X) - plain(X)).max() < 1e-3
    assert servers.error is None and servers.served == [3, 3, 3]
    for reveals in servers.reveals:
        assert [(each.to, each.owners) for each in reveals] == [
            (("alice",), {"alice", "P1"}),
            (("alice",), {"alice", "P1"}),
            (("bob",), {"bob", "P1"}),
        ]


def test_clients_at_the_same_time_get_their_own_answers(tmp_path):
    results = {}

    def ask(i):
        with Client.unix(tmp_path, f"client{i}") as client:
            results[i] = [client.predict(X + i) for _ in range(2)]

    with local(tmp_path, count=8) as servers:
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert servers.error is None and servers.served == [8, 8, 8]
    for i in range(4):
        assert all(np.abs(each - plain(X + i)).max() < 1e-3 for each in results[i])


def test_a_program_may_use_more_than_one_model_for_a_request(tmp_path):
    def program(model, reception, **arguments):
        answered = 0
        for request in mpc.requests(model, reception, **arguments):
            mpc.reveal(model(request.x * 2) - model(request.x), to=request.client)
            answered += 1
        return answered

    with local(tmp_path, program=program, count=1), Client.unix(tmp_path, "alice") as client:
        assert np.abs(client.predict(X) - plain(2 * X) + plain(X)).max() < 2e-3


@pytest.fixture
def certified(tmp_path):
    certificates.create(tmp_path, now=dt.datetime.now(dt.UTC), clients=["alice", "eve"])
    return tmp_path


def listening(directory, **arguments):
    """Receptions over TLS, and where they are."""
    sockets = [bind("127.0.0.1", 0) for _ in range(2)]
    receptions = [Reception.tcp(rank, sockets[rank], directory / f"P{rank}", **arguments) for rank in range(2)]
    receptions.append(Reception.tcp(2, ("", 0), directory / "D"))
    return receptions, {rank: sock.getsockname() for rank, sock in enumerate(sockets)}


def test_over_tls_a_client_is_who_its_certificate_says(certified):
    receptions, addresses = listening(certified, clients=["alice"])
    with serving(receptions) as servers:
        with Client.tcp(addresses, certified / "client-alice") as client:
            assert np.abs(client.predict(X) - plain(X)).max() < 1e-3
        with pytest.raises(PeerIdentityError, match=r"P[01]: client: eve is not served here"):
            Client.tcp(addresses, certified / "client-eve")
        for stranger in ("P1", "D"):
            with pytest.raises(StrongroomError):
                Client.tcp(addresses, certified / stranger)
    assert servers.error is None and servers.reveals[0][0].to == ("alice",)


def test_over_tls_a_client_knows_which_server_is_which(certified):
    receptions, addresses = listening(certified)
    with serving(receptions), pytest.raises(PeerIdentityError, match="wanted P0"):
        Client.tcp({0: addresses[1], 1: addresses[0]}, certified / "client-alice")


# What each server sees


def test_what_a_server_gets_of_an_input_is_uniform_and_never_the_same():
    words, seen = [], {0: [], 1: []}
    client = Client.__new__(Client)
    client.service = mpc.client.Service("", "00" * 32, (None, 4), 256, 16, 15)
    client._ask = lambda rank, request: seen[rank].append(request)
    client._answer = lambda rank: wire.Answer(seen[rank][-1].id, b"", (1,), np.zeros(1, np.uint64))
    for _ in range(64):
        client.predict(np.ones((64, 4)))
    for masked, seed in zip(seen[0], seen[1], strict=True):
        share = np.frombuffer(masked.data, "<u8")
        assert ((share + wire.expand(seed.data, 256)) == 1 << 16).all()
        words.append(share)
    assert len(np.unique(np.concatenate(words))) == 64 * 256
    assert len({request.data for request in seen[1]}) == len({request.id for request in seen[1]}) == 64
    counts = np.bincount(np.concatenate(words).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)


def test_an_answer_s_shares_are_fresh(tmp_path):
    """Each server's share of the same answer is another one each time."""
    shares = []
    parse = wire.Answer.parse

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wire.Answer, "parse", lambda payload: shares.append(parse(payload)) or shares[-1])
        with local(tmp_path), Client.unix(tmp_path, "alice") as client:
            for _ in range(3):
                client.predict(np.zeros((1, 4)))
    assert (
        len(shares) == 6 and Counter(np.concatenate([each.words for each in shares]).tolist()).most_common(1)[0][1] == 1
    )


# What goes wrong


@pytest.mark.parametrize(
    "x", [np.ones((1, 3)), np.ones(4), np.ones((0, 4)), np.ones((257, 4)), np.full((1, 4), np.nan)]
)
def test_an_input_that_will_not_do_does_not_leave_the_client(tmp_path, x):
    with local(tmp_path), Client.unix(tmp_path, "alice") as client:
        with pytest.raises(UsageError, match=r"input: got shape|values: got nan"):
            client.predict(x)
        assert np.abs(client.predict(X) - plain(X)).max() < 1e-3


def ask(client, requests):
    """Send requests of one's own making, and read the answers."""
    for rank in (1, 0):
        if rank in requests:
            client._ask(rank, requests[rank])
    errors = {}
    for rank in requests:
        try:
            client._answer(rank)
        except StrongroomError as error:
            errors[rank] = error
    return errors


def made(client, shape=(1, 4), number=None, model=None):
    number = number or np.random.default_rng().bytes(16)
    model = model or bytes.fromhex(client.service.model)
    data = {0: bytes(8 * int(np.prod(shape))), 1: bytes(16)}
    return {rank: wire.Request(number, model, shape, data[rank]) for rank in (0, 1)}


def test_what_clients_make_up_is_refused_and_the_service_goes_on(tmp_path, monkeypatch):
    """Another shape, another model, a number used before, servers that get different things, one server alone."""
    monkeypatch.setattr(serving_module, "_MATCH", 0.2)
    with local(tmp_path) as servers, ExitStack() as stack:

        def client():
            return stack.enter_context(Client.unix(tmp_path, "mallory"))

        one = client()
        servers.receptions[1]._patience = 0.5
        errors = ask(one, made(one, shape=(1, 5)))
        assert all("shape: got (1, 5), wanted (1 to 256, 4)" in errors[rank].message for rank in (0, 1))

        one = client()
        errors = ask(one, made(one, model=bytes(32)))
        assert "P0 and P1 got different ones" in errors[0].message

        one, two = client(), client()
        first = made(one)
        assert ask(one, first) == {}
        errors = ask(two, first)
        assert all("its number was used before" in errors[rank].message for rank in (0, 1))

        one = client()
        torn = made(one)
        torn[1] = made(one, shape=(2, 4), number=torn[1].id)[1]
        assert "P0 and P1 got different ones" in ask(one, torn)[0].message

        one = client()
        assert "P1 does not have it" in ask(one, {0: made(one)[0]})[0].message
        one = client()
        assert "P0 did not ask for it" in ask(one, {1: made(one)[1]})[1].message

        with Client.unix(tmp_path, "alice") as honest:
            assert np.abs(honest.predict(X) - plain(X)).max() < 1e-3
    assert servers.error is None and servers.served == [2, 2, 2]


def test_a_client_that_asks_p0_alone_keeps_nobody_waiting(tmp_path, monkeypatch):
    """Its requests stay until P1 may have them too, and others are answered meanwhile."""
    monkeypatch.setattr(serving_module, "_MATCH", 600)
    with local(tmp_path) as servers, ExitStack() as stack:
        waiting = servers.receptions[0]
        for i in range(8):
            hostile = stack.enter_context(Client.unix(tmp_path, "mallory"))
            hostile._ask(0, made(hostile)[0])
            with waiting._changed:
                assert waiting._changed.wait_for(lambda so_far=i: len(waiting._untaken()) > so_far, 60)
        with Client.unix(tmp_path, "alice") as honest:
            for _ in range(2):
                assert np.abs(honest.predict(X) - plain(X)).max() < 1e-3
        assert len(waiting._untaken()) == 8
        monkeypatch.setattr(serving_module, "_MATCH", 0)
        with pytest.raises(MpcError, match="P1 does not have it"):
            hostile._answer(0)
    assert servers.error is None and servers.served == [2, 2, 2]


def test_clients_take_turns_and_what_p1_lacked_comes_last():
    reception = Reception(0, None, None, clients=None)

    def comes(client, number):
        arrival = Arrival(client, wire.Request(bytes([number]) * 16, bytes(32), (1, 4), b""))
        reception._arrivals[arrival.key] = arrival
        return arrival

    greedy = [comes("mallory", i) for i in range(3)]
    reception.take(greedy[0])
    other = comes("alice", 9)
    assert reception.waiting(60, 8) == [other, *greedy[1:]]
    greedy[1].tries = 1
    reception.take(other)
    assert reception.waiting(60, 8) == [greedy[2], greedy[1]]
    assert reception.waiting(60, 1) == [greedy[2]]
    reception.stop()
    assert reception.waiting(60, 8) == []


def test_a_client_has_so_many_connections_and_requests_of_its_own_number(tmp_path):
    with local(tmp_path, count=2) as servers, ExitStack() as stack:
        mine = [stack.enter_context(Client.unix(tmp_path, "mallory")) for _ in range(8)]
        with pytest.raises(MpcError, match=r"P[01]: client: mallory has 8 connections already"):
            Client.unix(tmp_path, "mallory")
        with Client.unix(tmp_path, "alice") as other:
            number = bytes(16)
            assert ask(mine[0], made(mine[0], number=number)) == ask(other, made(other, number=number)) == {}
    assert servers.error is None


def test_strangers_at_the_clients_port_make_room(certified):
    receptions, addresses = listening(certified)
    with serving(receptions) as servers, ExitStack() as stack:
        Client.tcp(addresses, certified / "client-alice").close()  # they serve
        for address in addresses.values():
            for _ in range(80):
                stack.enter_context(socket.create_connection(address))
        with Client.tcp(addresses, certified / "client-alice") as client:
            assert np.abs(client.predict(X) - plain(X)).max() < 1e-3
        assert all(len(each._strangers) <= 64 for each in receptions)
    assert servers.error is None


@pytest.mark.parametrize("payload", [b"", b"x" * 10, b"x" * 200, b"x" * (1 << 16)])
def test_requests_that_lie_about_their_size_are_refused(tmp_path, payload):
    with local(tmp_path), Client.unix(tmp_path, "mallory") as client:
        wire.send(client._channels[0], wire.REQUEST, payload)
        with pytest.raises((FormatError, MpcError), match=r"request: got|shape: got|sent 65536 bytes, wanted at most"):
            client._answer(0)


def test_inputs_beyond_the_range_are_brought_into_it(tmp_path):
    """A client that skips the check of its own: its words mean nothing, and the answer is that of the nearest value."""
    with local(tmp_path, program=echo, count=1), Client.unix(tmp_path, "mallory") as client:
        request = made(client)
        wild = np.array([2**63, 2**63 - 1, 2**40, 5 << 16], np.uint64)
        share = wild - wire.expand(request[1].data, 4)
        request[0] = wire.Request(request[0].id, request[0].model, (1, 4), share.tobytes())
        for rank in (1, 0):
            client._ask(rank, request[rank])
        left, right = client._answer(0), client._answer(1)
        got = (left.words + right.words).view(np.int64) / 2**16
    assert (np.abs(got) <= 2**15).all() and got[1:].tolist() == [2**15 - 2**-16, 2**15 - 2**-16, 5]


def echo(model, reception, **arguments):
    for request in mpc.requests(model, reception, **arguments):
        mpc.reveal(request.x, to=request.client)


def test_a_tensor_is_answered_by_a_tensor(tmp_path):
    with local(tmp_path), Client.unix(tmp_path, "alice") as client:
        for x in (torch.as_tensor(X, dtype=torch.float32).requires_grad_(), torch.as_tensor(X)):
            answer = client.predict(x)
            assert answer.dtype == x.dtype and np.abs(answer.numpy() - plain(X)).max() < 1e-3
        assert client.predict(torch.ones(1, 4, dtype=torch.int64)).dtype == torch.float32
        for wrong in ("x", [[1, 2], [3]], torch.ones(1, 4) * 1j, object()):
            with pytest.raises(UsageError, match="input: ") as refused:
                client.predict(wrong)
            assert refused.value.hint == "an array or a tensor of numbers"


def test_both_servers_addresses_are_needed(certified):
    with pytest.raises(UsageError, match=r"addresses: got those of \[0\], wanted those of 0 and 1"):
        Client.tcp({0: ("127.0.0.1", 1)}, certified / "client-alice")


def test_a_missing_server_is_named(tmp_path):
    with pytest.raises(ChannelError, match="P0: not reached"):
        Client.unix(tmp_path, "alice")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(socket_path(tmp_path, 0)))
        other.listen()
        with pytest.raises(ChannelError, match="P1: not reached"):
            Client.unix(tmp_path, "alice")


class Liar:
    """A channel to a server whose frames are changed on their way."""

    def __init__(self, channel, change):
        self._channel, self._change, self._frame = channel, change, b""

    def recv_into(self, out):
        if not self._frame:
            header = bytearray(16)
            self._channel.recv_into(header)
            payload = bytearray(int.from_bytes(header[8:], "little"))
            self._channel.recv_into(payload)
            self._frame = bytes(header) + self._change(bytes(payload))
        out[:], self._frame = self._frame[: len(out)], self._frame[len(out) :]

    def __getattr__(self, name):
        return getattr(self._channel, name)


@pytest.mark.parametrize(
    ("place", "message"),
    [(0, "answer: is of another request"), (16, "did not compute the same"), (32, "answer: got|shape: got|the same")],
)
def test_a_server_that_lies_about_what_it_computed_is_not_believed(tmp_path, place, message):
    def change(payload):
        changed = bytearray(payload)
        changed[place] ^= 1
        return bytes(changed)

    with local(tmp_path), Client.unix(tmp_path, "alice") as client:
        client._channels[1] = Liar(client._channels[1], change)
        with pytest.raises((DivergedError, FormatError), match=message):
            client.predict(X)


def test_servers_that_do_not_serve_the_same_are_found_before_anything_is_sent():
    def welcome(rank, epoch):
        left, right = socket.socketpair()
        said = {"version": 1, "party": f"P{rank}", "epoch": epoch, "model": "00" * 32, "shape": [4], "most": 1}
        wire.send_text(Channel(left, "client", seconds=5), wire.WELCOME, said | {"frac": 16, "bound": 15})
        return left, Channel(right, f"P{rank}", seconds=5)

    (keep, p0), (keep_too, p1) = welcome(0, "a"), welcome(1, "b")
    with keep, keep_too, pytest.raises(DivergedError, match="P0 and P1 do not serve the same"):
        Client({0: p0, 1: p1})


def test_a_client_may_insist_on_a_model(tmp_path):
    with local(tmp_path):
        with Client.unix(tmp_path, "alice") as client:
            model = client.service.model
        Client.unix(tmp_path, "alice", model=model).close()
        with pytest.raises(MpcError, match=r"model: got .*, wanted 0000"):
            Client.unix(tmp_path, "alice", model="00" * 32)


def test_a_name_that_means_something_else_is_no_client_s(tmp_path):
    for name in ("P0", "public", "*", "", "a/b", "x" * 65):
        with pytest.raises(PolicyError, match="client: got"):
            Client.unix(tmp_path, name)


# Policies and the log


def test_owners_decide_whether_clients_are_answered(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    policy = Policy((Allow("P1", ("clients",), per_epoch=18),))
    with local(tmp_path, policy=policy, audit=logs) as servers, Client.unix(tmp_path, "alice") as client:
        assert np.abs(client.predict(X) - plain(X)).max() < 1e-3
        with pytest.raises(MpcError, match=r"service: ended: .*P1's policy allows 18 elements an epoch"):
            client.predict(X)
    assert isinstance(servers.error, RefusedError)
    p0, p1 = (read(logs / f"{rank}.audit") for rank in (0, 1))
    assert [record.kind for record in p0.records[:2]] == ["begin", "reveal"]
    assert p0.records[1].fields["to"] == ["alice"] and p0.records[1].fields["owners"] == ["P1", "alice"]
    assert compare(p0, p1) == []


def test_a_client_is_a_recipient_of_its_own_request_alone(tmp_path):
    def program(model, reception, **arguments):
        for request in mpc.requests(model, reception, **arguments):
            with pytest.raises(UsageError, match="to: got 'bob', wanted 0, 1, 'alice'"):
                mpc.reveal(request.x, to="bob")
            at_p0 = mpc.reveal(request.x, to=["P0", "alice"])
            assert isinstance(at_p0, torch.Tensor) == (current().party.rank == 0)
            with pytest.raises(UsageError, match="the request was answered before"):
                mpc.reveal(request.x, to="alice")

    with local(tmp_path, program=program, count=1) as servers, Client.unix(tmp_path, "alice") as client:
        assert np.abs(client.predict(X) - X).max() < 1e-4
    assert isinstance(servers.error, UsageError) or servers.error is None
