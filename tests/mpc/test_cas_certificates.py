"""Parties whose certificates a CAS issues: each by its own policy, whose administrators alone have keys certified."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from strongroom.attest.claims import registers_measurement
from strongroom.cas.client.parties import PartyIdentity
from strongroom.channel import bind
from strongroom.cli.mpc.cas import CasCredentials, credentials
from strongroom.crypto import PublicKey, SigningKey
from strongroom.errors import (
    CasUnreachableError,
    ChannelError,
    FormatError,
    PeerIdentityError,
    PolicyError,
    UnauthorizedError,
    VerificationError,
)
from strongroom.mpc.connect import join_tcp
from strongroom.mpc.peers import CasPeers, Peers
from strongroom.mpc.ring import Settings
from tests.cas.world import MEASURED, Clock, cas_in
from tests.mpc.test_meeting import met, run

POLICIES = ("hospital/p0", "bank/p1", "dealer/d")


def text(owner: SigningKey, name: str, more: str = "", **changes: object) -> str:
    head = {"name": name, "version": 1, "owner": owner.public.fingerprint, "role": "party"} | changes
    return "[policy]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in head.items()) + "\n" + more


@pytest.fixture(scope="module")
def cas(tmp_path_factory):
    with cas_in(tmp_path_factory.mktemp("cas")) as running:
        yield running


@pytest.fixture(scope="module")
def owners(cas):
    """The keys of the three parties' administrators, whose policies are there."""
    keys = [SigningKey.generate() for _ in POLICIES]
    for key, name in zip(keys, POLICIES, strict=True):
        with cas.owner(key) as client:
            client.apply(text(key, name))
    return keys


@pytest.fixture(scope="module")
def peers(cas):
    return CasPeers(cas.address.url, cas.address.cas_root, POLICIES)


def test_three_parties_meet_by_certificates_of_a_cas(cas, owners, peers, tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path))
    listening = [bind("127.0.0.1", 0) for _ in range(2)]
    addresses = {rank: sock.getsockname()[:2] for rank, sock in enumerate(listening)}

    def join(rank):
        owners[rank].save(tmp_path / f"{rank}.key")
        mine = credentials(peers, rank, tmp_path / f"{rank}.key")
        listen = listening[rank] if rank < 2 else None
        return join_tcp(rank, addresses, mine, Settings(seconds=20), listen=listen)

    assert met(run(join))
    for sock in listening:
        sock.close()
    with cas.owner(owners[0]) as client:
        (said,) = [json.loads(e["detail"]) for e in client.log() if e["event"] == "certificate"]
    assert said["by"].endswith(owners[0].public.fingerprint)


def mine(cas, key, policy):
    return PartyIdentity(cas.owner(key), policy)


def test_a_certificate_is_a_party_s_for_an_hour(cas, owners, peers):
    identity = mine(cas, owners[1], POLICIES[1]).current()
    held = CasCredentials(mine(cas, owners[1], POLICIES[1]), peers)
    assert held.named(identity.chain) == 1
    now = dt.datetime.now(dt.UTC)
    assert dt.timedelta(minutes=59) < identity.chain[0].not_after - now <= dt.timedelta(hours=1)
    held.expect([1], lambda: now)(identity.chain)
    with pytest.raises(PeerIdentityError, match="peer name: got spiffe://strongroom/bank/p1, wanted P0 or D"):
        held.expect([0, 2], lambda: now)(identity.chain)
    with pytest.raises(PeerIdentityError, match="not valid at"):
        held.expect([1], lambda: now + dt.timedelta(hours=2))(identity.chain)


def test_a_dealer_with_a_certificate_is_none_in_an_enclave(cas, owners, peers):
    """Where the servers appraise the dealer, no authority vouches for it."""
    listening = [bind("127.0.0.1", 0) for _ in range(2)]
    addresses = {rank: sock.getsockname()[:2] for rank, sock in enumerate(listening)}

    def join(rank):
        held = CasCredentials(mine(cas, owners[rank], POLICIES[rank]), peers)
        listen, appraise = (listening[rank], lambda stream: None) if rank < 2 else (None, None)
        return join_tcp(rank, addresses, held, Settings(seconds=20), listen=listen, appraise=appraise, wait=1)

    outcomes = run(join)
    assert all(isinstance(outcomes[rank], ChannelError) for rank in range(3))
    assert "has its key from an authority, wanted a dealer in an enclave" in outcomes[0].hint


def test_it_is_renewed_before_half_its_life(cas, owners):
    clock = Clock(dt.datetime.now(dt.UTC).timestamp())
    party = PartyIdentity(cas.owner(owners[0]), POLICIES[0], now=lambda: dt.datetime.fromtimestamp(clock(), dt.UTC))
    first = party.current()
    clock.now += 1700
    assert party.current() is first
    clock.now += 200
    second = party.current()
    assert second.key.public != first.key.public


def test_where_the_cas_is_away_it_lasts_until_it_ends(cas, owners, monkeypatch):
    clock = Clock(dt.datetime.now(dt.UTC).timestamp())
    client = cas.owner(owners[0])
    party = PartyIdentity(client, POLICIES[0], now=lambda: dt.datetime.fromtimestamp(clock(), dt.UTC))
    first = party.current()

    def away(*_):
        raise CasUnreachableError("CAS: away")

    monkeypatch.setattr(client, "certify_party", away)
    clock.now += 3000
    assert party.current() is first
    clock.now += 700
    with pytest.raises(CasUnreachableError):
        party.current()


def test_nobody_else_gets_a_party_s_certificate(cas, owners):
    with pytest.raises(UnauthorizedError, match="has not the right 'certificates'"):
        mine(cas, owners[1], POLICIES[0]).current()


def test_an_administrator_with_that_right_does(cas, owners):
    other, less = SigningKey.generate(), SigningKey.generate()
    administrators = "".join(
        f'[[administrators]]\nname = "{name}"\nkey = "{key.public.fingerprint}"\nmay = ["{right}"]\n'
        for name, key, right in (("a", other, "certificates"), ("b", less, "log"))
    )
    with cas.owner(owners[0]) as client:
        client.apply(text(owners[0], "hospital/shared", administrators))
    assert mine(cas, other, "hospital/shared").current()
    with pytest.raises(UnauthorizedError, match="has not the right"):
        mine(cas, less, "hospital/shared").current()


def test_a_key_is_certified_for_whoever_has_it(cas, owners):
    """The proof is over this connection, so that neither a key nor a proof of somebody else's will do."""
    with cas.owner(owners[0]) as client:
        key, other = SigningKey.generate(), SigningKey.generate()

        class Wrong(SigningKey):
            public: PublicKey

        wrong = Wrong(other.private_key)
        wrong.public = key.public
        with pytest.raises(VerificationError):
            client.certify_party(POLICIES[0], wrong)


@pytest.mark.parametrize("role", ["program", "service"])
def test_a_policy_of_another_role_certifies_nobody(cas, owners, role):
    reference = f'[reference]\ntees = ["simulated"]\nmeasurements = ["{registers_measurement(MEASURED)}"]\n'
    with cas.owner(owners[0]) as client:
        client.apply(text(owners[0], f"hospital/{role}", reference, role=role))
        with pytest.raises(UnauthorizedError, match=f"its role is {role}, wanted party"):
            client.certify_party(f"hospital/{role}", SigningKey.generate())


def test_a_party_with_reference_values_has_to_attest(cas, owners):
    reference = f'[reference]\ntees = ["simulated"]\nmeasurements = ["{registers_measurement(MEASURED)}"]\n'
    with cas.owner(owners[0]) as client:
        client.apply(text(owners[0], "hospital/enclave", reference))
        with pytest.raises(UnauthorizedError, match="has its certificate by attesting"):
            client.certify_party("hospital/enclave", SigningKey.generate())


def test_a_party_is_given_no_secrets(cas, owners):
    with cas.owner(owners[0]) as client, pytest.raises(PolicyError, match="secrets: a party's policy has none"):
        client.apply(text(owners[0], "hospital/x", '[[secrets]]\nname = "a"\nenvironment = "A"\n'))


PEERS = """
[parties]
P0 = "p0.example:7000"
P1 = "p1.example:7000"
[cas]
url = "https://cas.example:8443"
root = "sha256:{root}"
P0 = "hospital/p0"
P1 = "bank/p1"
D = "dealer/d"
"""


def test_a_file_of_peers_names_the_cas(tmp_path):
    found = Peers.parse(PEERS.format(root="00" * 32), beside=tmp_path).cas
    assert found == CasPeers("https://cas.example:8443", "sha256:" + "00" * 32, POLICIES)
    assert found.uris[2] == "spiffe://strongroom/dealer/d"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('D = "dealer/d"', "", "D is missing"),
        ('D = "dealer/d"', 'D = "bank/p1"', "two parties have one policy"),
        ('D = "dealer/d"', 'D = "dealer"', "wanted a policy's namespace/name"),
        ("sha256:00", "sha256:zz", "root is no fingerprint"),
        ("[parties]", 'certificates = "x"\n[parties]', "from it or from a directory"),
        ("url =", "more = 1\nurl =", "got more, wanted"),
    ],
)
def test_a_file_of_peers_says_nothing_else_of_it(tmp_path, old, new, message):
    with pytest.raises(FormatError, match=message):
        Peers.parse(PEERS.format(root="00" * 32).replace(old, new), beside=tmp_path)
