"""A dealer in an enclave: servers take its correlations once its evidence has convinced them, and from nobody else."""

import base64
import datetime as dt
import json
import socket
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from strongroom.attest.appraise import ReferenceValues
from strongroom.attest.binding import EXPORTER_LABEL, Kind, canonical, report_data
from strongroom.attest.claims import REGISTERS, registers_measurement
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.channel import Identity, accept, bind, connect
from strongroom.cli.mpc.dealer import read_dealer_policy
from strongroom.enclave import dealer_evidence
from strongroom.enclave.dealer_evidence import appraise_dealer, show
from strongroom.errors import (
    BindingError,
    ChannelError,
    DebugEnclaveError,
    DivergedError,
    ExpiredError,
    MeasurementError,
    MpcError,
    PeerIdentityError,
    PolicyError,
    SimulatedEnclaveError,
    StrongroomError,
    VerificationError,
)
from strongroom.mpc import certificates

pytest.importorskip("torch", reason="computing on shares needs PyTorch: it is not tested")

from strongroom.enclave.dealing import meet
from strongroom.mpc.connect import join_tcp, join_unix
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.ring import Settings

NOW = dt.datetime.now(dt.UTC)
SETTINGS = Settings(seconds=20)
THIS = {name: bytes([number]) * 48 for number, name in enumerate(REGISTERS)}
OTHER = THIS | {"rtmr3": bytes(48)}


@pytest.fixture(scope="module")
def vendor(tmp_path_factory):
    return SimulatedVendor.open(tmp_path_factory.mktemp("vendor"), now=int(time.time()))


@pytest.fixture
def reference(vendor):
    return ReferenceValues(("simulated",), (registers_measurement(THIS),), allow_simulated=vendor.root_digest)


class Debugged(SimulatedAttester):
    """The hardware of an enclave that was launched for debugging."""

    def evidence(self, data):
        return self.vendor.quote(self.registers, data, debug=True)


class Recorded:
    """Shows again what another attester made the first time."""

    tee = "simulated"

    def __init__(self, attester):
        self.attester, self.first = attester, None

    def evidence(self, data):
        self.first = self.first or self.attester.evidence(data)
        return self.first


def identity():
    return Identity.fresh("D", now=NOW, uri=certificates.uri(2))


def channel(dealer, server):
    """What both ends of a channel returned or raised."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.settimeout(20)
    outcome, mine = [], identity()

    def end():
        stream = connect(theirs, expect=lambda chain: None, identity=mine)
        try:
            outcome.append(dealer(stream, mine.key.public.fingerprint))
        except StrongroomError as error:
            outcome.append(error)
        finally:
            stream.close()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        stream = accept(ours, expect=lambda chain: None, identity=Identity.fresh("P0", now=NOW))
        found = server(stream)
        stream.close()
    except StrongroomError as error:
        found = error
    finally:
        ours.close()
        thread.join()
    return found, outcome[0]


def outcomes(dealer, reference, *, server=0, now=lambda: int(time.time())):
    return channel(dealer, lambda stream: appraise_dealer(stream, server, reference, now=now))


def showing(attester, server=0):
    return lambda stream, key: show(stream, server, attester, key)


def test_a_dealer_that_convinces(vendor, reference):
    result, told = outcomes(showing(SimulatedAttester(vendor, THIS)), reference)
    assert result.measurement == registers_measurement(THIS)
    assert told is None


@pytest.mark.parametrize(
    ("attester", "refusal"),
    [
        (lambda vendor: SimulatedAttester(vendor, OTHER), MeasurementError),
        (lambda vendor: Debugged(vendor, THIS), DebugEnclaveError),
    ],
    ids=["another program", "debug"],
)
def test_an_enclave_that_no_policy_accepts_is_refused_and_told_why(vendor, reference, attester, refusal):
    found, told = outcomes(showing(attester(vendor)), reference)
    assert type(found) is type(told) is refusal
    assert told.message == found.message


def test_a_policy_that_accepts_no_simulation_or_no_measurement_refuses(vendor, reference, tmp_path):
    nothing = ReferenceValues(("simulated",), (), allow_simulated=vendor.root_digest)
    stranger = SimulatedVendor.open(tmp_path / "another", now=int(time.time()))
    dealer = SimulatedAttester(vendor, THIS)
    hardware = ReferenceValues(("tdx",), reference.measurements)
    assert isinstance(outcomes(showing(dealer), nothing)[0], MeasurementError)
    assert isinstance(outcomes(showing(dealer), hardware)[0], SimulatedEnclaveError)
    assert isinstance(outcomes(showing(SimulatedAttester(stranger, THIS)), reference)[0], SimulatedEnclaveError)


def test_evidence_that_has_expired_is_refused(vendor, reference):
    later = int(time.time()) + 10 * 365 * 86400
    assert isinstance(outcomes(showing(SimulatedAttester(vendor, THIS)), reference, now=lambda: later)[0], ExpiredError)


def test_old_evidence_is_refused(vendor, reference):
    recorded = Recorded(SimulatedAttester(vendor, THIS))
    assert outcomes(showing(recorded), reference)[1] is None
    assert isinstance(outcomes(showing(recorded), reference)[0], BindingError)


def forged(vendor, *, nonce=None, key=None, server="P0", kind=Kind.SESSION, role=dealer_evidence.ROLE):
    """A dealer that has a convincing enclave say something else than it should."""

    def dealer(stream, own):
        _, given = dealer_evidence._receive(stream, dealer_evidence._CHALLENGE)
        claims = canonical({"role": role, "server": server, "spki": key or own})
        binder = stream.export(EXPORTER_LABEL, dealer_evidence.ROLE.encode())
        bound = report_data(
            kind, fresh=nonce or given, binder=binder if kind is Kind.SESSION else bytes(32), claims=claims
        )
        evidence = vendor.quote(THIS, bound)
        answer = {"claims": base64.b64encode(claims).decode(), "evidence": evidence.to_wire()}
        dealer_evidence._send(stream, dealer_evidence._EVIDENCE, 0, json.dumps(answer).encode())
        dealer_evidence._receive(stream, dealer_evidence._ACCEPTED)

    return dealer


@pytest.mark.parametrize(
    "lie",
    [
        {"nonce": bytes(32)},
        {"key": "sha256:" + "0" * 64},
        {"server": "P1"},
        {"kind": Kind.SERVICE},
        {"role": "program"},
    ],
    ids=lambda lie: next(iter(lie)),
)
def test_evidence_for_another_nonce_key_server_kind_or_role_is_refused(vendor, reference, lie):
    assert outcomes(forged(vendor), reference)[1] is None
    assert isinstance(outcomes(forged(vendor, **lie), reference)[0], BindingError)


def test_a_server_completes_evidence_that_comes_without_endorsements(vendor, reference):
    whole = SimulatedAttester(vendor, THIS)

    class Bare:
        def evidence(self, bound):
            return replace(whole.evidence(bound), endorsements=b"")

    def complete(evidence, now):
        assert evidence.endorsements == b""
        return replace(evidence, endorsements=whole.evidence(bytes(64)).endorsements)

    def server(stream):
        return appraise_dealer(stream, 0, reference, now=lambda: int(time.time()), complete=complete)

    assert isinstance(outcomes(showing(Bare()), reference)[0], VerificationError)
    found, told = channel(showing(Bare()), server)
    assert (found.measurement, told) == (reference.measurements[0], None)


def test_evidence_relayed_from_another_channel_is_refused(vendor, reference):
    """Somebody who would read what is dealt stands between: genuine evidence, but not this channel's."""

    def between(stream, own):
        rank, nonce = dealer_evidence._receive(stream, dealer_evidence._CHALLENGE)

        def ask(genuine):
            dealer_evidence._send(genuine, dealer_evidence._CHALLENGE, rank, nonce)
            return dealer_evidence._receive(genuine, dealer_evidence._EVIDENCE)[1]

        answer, _ = channel(showing(SimulatedAttester(vendor, THIS)), ask)
        dealer_evidence._send(stream, dealer_evidence._EVIDENCE, 0, answer)
        dealer_evidence._receive(stream, dealer_evidence._ACCEPTED)

    found, told = outcomes(between, reference)
    assert isinstance(found, BindingError)
    assert isinstance(told, BindingError)


@pytest.mark.parametrize(
    "sent",
    [
        b"SRM1\x01" + bytes(155),
        b"SRA1\x02\0\0\0\xff\xff\xff\x7f",
        b"SRA1\x02\0\0\0\x02\0\0\0{}",
        b"SRA1\x02\0\0\0\x02\0\0\0[]",
        b"SRA1\x02\0\0\0\x04\0\0\0\xff\xff\xff\xff",
        b"SRA1\x03\0\0\0\0\0\0\0",
        b"SRA1\x04\0\0\0\0\0\0\0",
    ],
    ids=["an ordinary dealer", "too much", "nothing", "a list", "no text", "an acceptance", "a refusal"],
)
def test_what_is_no_evidence_is_refused(reference, sent):
    def dealer(stream, key):
        stream.send(sent)
        stream.recv()

    found, _ = outcomes(dealer, reference)
    assert isinstance(found, VerificationError)


def test_a_dealer_that_leaves_is_not_taken(reference):
    assert isinstance(outcomes(lambda stream, key: None, reference)[0], ChannelError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "reference: missing"),
        ("[reference]\ntees = ['tdx']", "reference.measurements: missing"),
        (
            "[reference]\ntees = ['tdx']\nmeasurements = ['" + "0" * 96 + "']\nallow_simulated = true",
            "reference.allow_simulated: got true",
        ),
        ("[reference]\ntees = ['tdx']\nmeasurements = ['" + "0" * 96 + "']\n[more]", "unknown key 'more'"),
        ("[reference]\ntees = ['tdx']\nmeasurements = ['" + "0" * 96 + "']\ndebug = true", "unknown key 'debug'"),
    ],
    ids=["empty", "no measurements", "any simulation", "more", "debug"],
)
def test_a_policy_that_says_too_little_or_too_much_is_none(tmp_path, text, message):
    path = tmp_path / "dealer.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=message):
        read_dealer_policy(path)


@dataclass
class Host:
    """The launcher's end for a dealer in this process: sockets, and hardware."""

    vendor: SimulatedVendor
    dials: dict
    registers: dict

    def ask_socket(self, op, peer):
        return self.dials[peer]()

    def evidence(self, data):
        return self.vendor.quote(self.registers, data)

    def event(self, name, **detail):
        pass


class Meeting:
    """Two servers that appraise, and whatever comes as a dealer."""

    def __init__(self, vendor, reference, directory, *, wait=20.0):
        self.vendor, self.reference, self.wait = vendor, reference, wait
        self.places = certificates.create(directory, now=NOW)
        self.listening = [bind("127.0.0.1", 0) for _ in range(2)]
        self.addresses = {rank: sock.getsockname()[:2] for rank, sock in enumerate(self.listening)}

    def appraise(self, rank):
        return lambda stream: appraise_dealer(stream, rank, self.reference, now=lambda: int(time.time()))

    def server(self, rank):
        return join_tcp(
            rank,
            self.addresses,
            self.places[rank],
            SETTINGS,
            listen=self.listening[rank],
            wait=self.wait,
            appraise=self.appraise(rank),
        )

    def dealer(self, registers=THIS, servers=(0, 1)):
        dials = {
            f"P{rank}": lambda to=to: socket.create_connection(self.addresses[to]) for rank, to in enumerate(servers)
        }
        return meet(Host(self.vendor, dials, registers), SETTINGS, b"")


def program(party):
    with party:
        x = share(party, lambda: np.array([-1.0, 2.0, 3.0]), source=0, shape=(3,))
        return reveal(relu(x), to=[1])


def run(*parties):
    found = [None] * len(parties)

    def one(index):
        try:
            found[index] = program(parties[index]())
        except StrongroomError as error:
            found[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(parties))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def meeting(vendor, reference, tmp_path):
    made = Meeting(vendor, reference, tmp_path / "certificates")
    yield made
    for sock in made.listening:
        sock.close()


def test_an_attested_dealer_deals_over_tcp(meeting):
    found = run(lambda: meeting.server(0), lambda: meeting.server(1), meeting.dealer)
    assert found[0] is found[2] is None
    np.testing.assert_allclose(found[1], [0, 2, 3], atol=1e-3)


def test_an_attested_dealer_deals_over_unix_sockets(vendor, reference, tmp_path):
    directory = tmp_path / "s"
    directory.mkdir(mode=0o700)

    def server(rank):
        def appraise(stream):
            appraise_dealer(stream, rank, reference, now=lambda: int(time.time()))

        return lambda: join_unix(rank, directory, SETTINGS, appraise=appraise)

    def dial(name):
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(directory / f"{name}.sock"))
            except OSError:
                sock.close()
                continue
            sock.sendall(b"\2")
            return sock

    host = Host(vendor, {name: lambda name=name: dial(name) for name in ("P0", "P1")}, THIS)
    found = run(server(0), server(1), lambda: meet(host, SETTINGS, b""))
    assert found[0] is found[2] is None
    np.testing.assert_allclose(found[1], [0, 2, 3], atol=1e-3)


def test_servers_go_no_further_with_a_dealer_that_runs_something_else(meeting):
    meeting.wait = 4
    found = run(lambda: meeting.server(0), lambda: meeting.dealer(OTHER))
    assert [type(each) for each in found] == [MeasurementError, MeasurementError]


def test_a_dealer_in_no_enclave_is_not_taken_though_the_authority_vouches_for_it(meeting):
    meeting.wait = 4

    def ordinary():
        return join_tcp(2, meeting.addresses, meeting.places[2], SETTINGS, wait=1)

    found = run(lambda: meeting.server(0), ordinary)
    assert all(isinstance(each, ChannelError) for each in found)
    assert "enclave, which makes its own" in found[0].hint


def test_an_enclave_is_no_dealer_to_a_server_that_appraises_none(meeting):
    meeting.wait = 3
    meeting.appraise = lambda rank: None
    found = run(lambda: meeting.server(0), meeting.dealer)
    assert all(isinstance(each, StrongroomError) for each in found)


def test_a_host_that_mixes_the_servers_up_is_found(meeting):
    meeting.wait = 1
    found = run(lambda: meeting.server(0), lambda: meeting.server(1), lambda: meeting.dealer(servers=(1, 0)))
    assert isinstance(found[2], PeerIdentityError)


def test_a_host_that_gives_each_server_a_dealer_of_its_own_is_found(meeting):
    """Both are what the policy says, and each would deal half of what makes no whole."""
    keep = []
    connected = threading.Barrier(2)

    def dealer(own):
        def dial(rank):
            try:
                sock = socket.create_connection(meeting.addresses[rank])
            except OSError:
                raise ChannelError("host: that server has ended") from None
            if rank != own:
                sock.close()  # the host throws this one away, and puts a server of its own there
                ours, theirs = socket.socketpair()
                keep.append(ours)
                threading.Thread(target=fake_server, args=(ours, rank), daemon=True).start()
                return theirs
            return sock

        def fake_server(sock, rank):
            stream = accept(sock, expect=lambda chain: None, identity=Identity.fresh("?", now=NOW))
            appraise_dealer(stream, rank, meeting.reference, now=lambda: int(time.time()))

        dials = {"P0": lambda: dial(0), "P1": lambda: dial(1)}
        connected.wait()
        return meet(Host(meeting.vendor, dials, THIS), Settings(seconds=2), b"")

    found = run(lambda: meeting.server(0), lambda: meeting.server(1), lambda: dealer(0), lambda: dealer(1))
    assert isinstance(found[0], MpcError | DivergedError | ChannelError)
    assert isinstance(found[1], MpcError | DivergedError | ChannelError)
    for sock in keep:
        sock.close()
