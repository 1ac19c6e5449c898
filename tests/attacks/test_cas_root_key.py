"""Attacks on a CAS's root secret: by who has its disk, some shares, the line to it, or another enclave."""

from __future__ import annotations

import datetime as dt
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
from starlette.responses import JSONResponse

from strongroom.attest.appraise import ReferenceValues
from strongroom.attest.binding import canonical, parse_canonical
from strongroom.attest.claims import registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.cas.api.bodies import read_body
from strongroom.cas.client.address import dial_cas, split_address
from strongroom.cas.client.enclave import EnclaveSession
from strongroom.cas.service.server import Settings, prepare
from strongroom.cas.start.authority import Authority
from strongroom.cas.start.mode import Restart
from strongroom.cas.state.root_secret import open_root_secret, read_record
from strongroom.cas.state.store import Store
from strongroom.cas.unseal.holder import give_share
from strongroom.cas.unseal.locked import LockedCas
from strongroom.cas.unseal.peer import Peer
from strongroom.cas.unseal.shamir import combine
from strongroom.cas.unseal.shares import Shares
from strongroom.cas.wire import b64, bytes_field
from strongroom.channel import Identity, Server, bind
from strongroom.crypto import CertificateAuthority, HpkeKey
from strongroom.errors import (
    BindingError,
    CasError,
    ConflictError,
    DebugEnclaveError,
    MeasurementError,
    TamperedError,
    UnauthorizedError,
    UsageError,
    VerificationError,
    WrongKeyError,
)
from tests.cas.owners import KEYS as OWNERS
from tests.cas.test_unseal_peer import NEXT, OPERATORS, Running, running
from tests.cas.unsealing import KEYS, cas_root, holders, opened, share_of, shared_cas, waiting
from tests.cas.world import MEASURED

NOW = int(time.time())


@pytest.fixture
def shared(tmp_path):
    return tmp_path / "cas", shared_cas(tmp_path / "cas")


@pytest.fixture(scope="module")
def vendor(tmp_path_factory):
    return SimulatedVendor.open(tmp_path_factory.mktemp("vendor"), now=NOW)


def reference(vendor, measured=MEASURED) -> ReferenceValues:
    measurements = (registers_measurement(measured),)
    return ReferenceValues(tees=("simulated",), measurements=measurements, allow_simulated=vendor.root_digest)


# A stolen disk


def test_a_stolen_directory_gives_neither_rows_nor_the_ca_key(shared, tmp_path):
    directory, secret = shared
    opened(directory, secret)
    stolen = tmp_path / "stolen"
    shutil.copytree(directory, stolen)
    for path in stolen.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for plain in (secret, secret.hex().encode(), b"swordfish", b"PRIVATE KEY"):
                assert plain not in content
    with pytest.raises(UsageError, match="kept by shares"):
        open_root_secret(stolen)
    # A way of the thief's choice, with or without the record.
    for record in (True, False):
        if not record:
            (stolen / "unseal.json").unlink()
            with pytest.raises(WrongKeyError, match="is missing"):
                open_root_secret(stolen)
        (stolen / "master.key").write_bytes(b"t" * 32)
        guess = b"t" * 32 if record else open_root_secret(stolen)
        with pytest.raises(WrongKeyError):
            Store(stolen, secret=guess)
        with pytest.raises(WrongKeyError, match="sealed under another root secret"):
            cas_root(stolen, guess)
        (stolen / "master.key").unlink()


def test_a_ca_key_of_the_host_s_own_is_not_taken(shared, tmp_path):
    """In plain, as CAS's had it once: it would be sealed in silence, and shown under right evidence ever after."""
    directory, secret = shared
    before = cas_root(directory, secret)
    sealed = (directory / "root.key").read_bytes()
    planted = CertificateAuthority.create("Strongroom CAS root", now=dt.datetime.now(dt.UTC))
    (directory / "root.key").write_bytes(planted.key.pem() + planted.certificate.pem())
    for way in ("shares", "peer", "tpm", "snp", "sgx"):
        with pytest.raises(WrongKeyError, match=r"root\.key: is in plain"):
            Authority(directory, secret, now=dt.datetime.now(dt.UTC), hosts=["localhost"], unseal=way)
    # Nor by the whole of a start: the holders give their shares, and it ends.
    arrived, told, ended = threading.Event(), [], []

    def start():
        settings = Settings(unsealer=Shares(directory, tell=lambda line: (told.append(line), arrived.set())))
        try:
            ended.append(prepare(directory, settings))
        except WrongKeyError as error:
            ended.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    assert arrived.wait(60)
    for name in ("alice", "bob"):
        give_share(told[0].split()[1], share_of(directory, name), KEYS[name], reference=None)
    thread.join(60)
    assert isinstance(ended[0], WrongKeyError) and "is in plain" in ended[0].message
    (directory / "root.key").write_bytes(sealed)
    assert cas_root(directory, secret) == before


def test_a_ca_key_that_was_taken_away_is_not_made_anew(tmp_path):
    service = prepare(tmp_path / "cas")
    service.store.record("word", "acme/train", {}, now=1)
    service.close()
    kept = (tmp_path / "cas" / "root.key").read_bytes()
    (tmp_path / "cas" / "root.key").unlink()
    with pytest.raises(WrongKeyError, match=r"root\.key: is missing, and its database is not a new CAS's"):
        prepare(tmp_path / "cas")
    (tmp_path / "cas" / "root.key").write_bytes(kept)
    prepare(tmp_path / "cas").close()


# Shares


def test_one_share_fewer_gives_nothing(shared, tmp_path):
    """Neither the CAS opens, nor do the shares together with all that is on the disk."""
    directory, secret = shared
    cas_root(directory, secret)
    alice = share_of(directory, "alice")
    share = alice.open(KEYS["alice"])
    assert combine({1: share}) != secret
    with pytest.raises(WrongKeyError):
        cas_root(directory, combine({1: share}))
    with waiting(directory) as cas, cas.http() as http:
        give_share(cas.url, alice, KEYS["alice"], reference=None)
        for _ in range(3):
            with pytest.raises(ConflictError, match="share 1: has been given already"):
                give_share(cas.url, alice, KEYS["alice"], reference=None)
        assert http.get("/v1/unseal")["open"] is False
        with pytest.raises(CasError, match="is sealed; 1 of the 2 shares"):
            http.get("/v1/cas")


def test_a_share_that_was_listened_to_opens_nothing_later(shared):
    """What a holder sent, sent again to the next start: it is sealed to a key that is no more."""
    directory, _ = shared
    sent = []
    with waiting(directory) as cas, cas.http() as http:
        post = http.post

        def listening(path, value, **options):
            sent.append((path, value))
            return post(path, value, **options)

        http.post = listening
        cas.give(http, bytes([1]) + share_of(directory, "alice").open(KEYS["alice"]))
    (box,) = [value for path, value in sent if path == "/v1/unseal"]
    with waiting(directory) as cas, cas.http() as http:
        with pytest.raises(UnauthorizedError, match="was not sealed to this CAS as it runs now"):
            http.post("/v1/unseal", box)
        assert http.get("/v1/unseal")["shares"] == 0


def test_a_host_s_own_sealed_cas_gets_no_share(shared, vendor, tmp_path):
    """It knows the set, which is no secret, and shows evidence: of other code, or none at all."""
    directory, _ = shared
    alice = share_of(directory, "alice")
    with pretending(alice, attester=None) as url, pytest.raises(VerificationError, match="the CAS showed none"):
        give_share(url, alice, KEYS["alice"], reference=reference(vendor))
    other = SimulatedAttester(vendor, NEXT)
    with pretending(alice, attester=other) as url, pytest.raises(MeasurementError):
        give_share(url, alice, KEYS["alice"], reference=reference(vendor))
    debug = Debugged(vendor)
    with pretending(alice, attester=debug) as url, pytest.raises(DebugEnclaveError):
        give_share(url, alice, KEYS["alice"], reference=reference(vendor))


class Debugged(SimulatedAttester):
    def __init__(self, vendor) -> None:
        super().__init__(vendor, MEASURED)

    def evidence(self, report_data: bytes) -> Evidence:
        return self.vendor.quote(self.registers, report_data, debug=True)


@contextmanager
def pretending(file, *, attester, made=LockedCas):
    """Somebody else's sealed CAS of the same set."""
    identity = Identity.fresh("somebody", now=dt.datetime.now(dt.UTC))
    locked = made(file.set, identity, attester=attester)
    with bind("127.0.0.1", 0) as sock, Server(locked.application(), sock, identity) as server:
        yield f"https://127.0.0.1:{server.port}"


def test_evidence_that_is_relayed_gets_no_share(shared, vendor):
    """A host between holder and CAS passes the CAS's offer on: with its TLS key as it is, or in the claims its own."""
    directory, _ = shared
    alice = share_of(directory, "alice")
    attester = SimulatedAttester(vendor, MEASURED)
    with waiting(directory, attester=attester) as cas:

        class Relay(LockedCas):
            async def offer(self, request):
                nonce = (await read_body(request))["nonce"]
                with cas.http() as http:
                    return JSONResponse(self.changed(http.post("/v1/unseal/offer", {"nonce": nonce})))

            def changed(self, offer):
                return offer

        with pretending(alice, attester=None, made=Relay) as url, pytest.raises(BindingError, match=r"claims\.spki"):
            give_share(url, alice, KEYS["alice"], reference=reference(vendor))

        class Forging(Relay):
            def changed(self, offer):
                claims = parse_canonical(bytes_field(offer, "claims"))
                claims["spki"] = parse_canonical(self._claims)["spki"]
                return offer | {"claims": b64(canonical(claims))}

        with pretending(alice, attester=None, made=Forging) as url, pytest.raises(BindingError, match="report data"):
            give_share(url, alice, KEYS["alice"], reference=reference(vendor))

        class Swapping(Relay):
            def changed(self, offer):
                return offer | {"claims": b64(self._claims)}  # the evidence is the CAS's, the HPKE key is not

        with pretending(alice, attester=None, made=Swapping) as url, pytest.raises(BindingError, match="report data"):
            give_share(url, alice, KEYS["alice"], reference=reference(vendor))
    assert cas.secret()


def test_a_secret_of_the_host_s_making_opens_no_cas_of_ours(shared, tmp_path):
    """The host shares out a secret of its own and unseals with that: database and CA key are not of it."""
    directory, ours = shared
    opened(directory, ours)
    theirs = tmp_path / "theirs"
    secret = shared_cas(theirs)
    shutil.copy(theirs / "unseal.json", directory / "unseal.json")
    with pytest.raises(WrongKeyError):
        Store(directory, secret=secret)
    with pytest.raises(WrongKeyError):
        cas_root(directory, secret)


def test_commitments_cannot_be_exchanged_under_the_set_s_name(shared):
    """The name is what holders compare: it is the digest of all of it."""
    directory, _ = shared
    file = share_of(directory, "alice")
    record = read_record(directory)
    moved = type(file.set).from_wire(record | {"commitments": record["commitments"][::-1]})
    assert moved.name != file.set.name
    assert type(file.set).from_wire(record | {"threshold": 1}).name != file.set.name


def test_a_share_file_in_other_hands_is_of_no_use(shared):
    directory, secret = shared
    for path in directory.glob("shares-*/*.share"):
        assert secret not in path.read_bytes()
    alice = share_of(directory, "alice")
    thief = HpkeKey()
    with pytest.raises(WrongKeyError):
        alice.open(thief)
    stolen = type(alice)(alice.set, alice.index, alice.holder, thief.public, alice.box)
    with pytest.raises(TamperedError):
        stolen.open(thief)


# Peers


@pytest.fixture
def old(tmp_path):
    with running(tmp_path / "old", tmp_path / "vendor") as cas:
        yield cas


def test_an_enclave_that_may_be_debugged_gets_no_root_secret(old, tmp_path):
    old.apply(old.text(MEASURED), "alice", "bob")
    peer = Peer(tmp_path / "new", old.address.url, old.address.cas_root, attester=Debugged(old.vendor))
    with pytest.raises(DebugEnclaveError):
        peer.recover({})


def test_an_enclave_of_an_ordinary_policy_gets_no_root_secret(old):
    """The measurement is approved, and its policy is not the CAS's."""
    text = old.text(MEASURED, name="acme/train", role="program", owners="\n")
    old.apply(text)
    with running_session(old, "acme/train", "program") as session:
        given = session.attest()
        assert (given.root_secret, given.root_key) == (b"", b"")
    with running_session(old, "acme/train", "cas") as session, pytest.raises(BindingError, match=r"claims\.role"):
        session.attest()


@contextmanager
def running_session(cas: Running, policy: str, role: str):
    session = EnclaveSession(
        lambda: dial_cas(*split_address(cas.address.url)),
        cas_root=cas.address.cas_root,
        policy=policy,
        role=role,
        attester=SimulatedAttester(cas.vendor, MEASURED),
    )
    try:
        yield session
    finally:
        session.close()


def test_operators_that_a_host_adds_later_decide_nothing(tmp_path, vendor):
    """A CAS that was created without any, and whose root secret its host does not have."""
    directory = tmp_path / "cas"
    with prepare(directory, Settings(unsealer=Shares(directory, holders(*KEYS), 2))) as service:
        before = service.address.cas_root
    operators = tuple(OWNERS[name].public.fingerprint for name in OPERATORS)
    told, got = [], []
    arrived = threading.Event()

    def tell(line):
        told.append(line)
        arrived.set()

    settings = Settings(
        unsealer=Shares(directory, tell=tell), restart=Restart("trust-disk", operators=operators, needed=2)
    )
    thread = threading.Thread(target=lambda: got.append(prepare(directory, settings)))
    thread.start()
    assert arrived.wait(60)
    for name in ("alice", "bob"):
        give_share(told[0].split()[1], share_of(directory, name), KEYS[name], reference=None)
    thread.join(60)
    with got[0] as service:
        assert service.address.cas_root == before
        cas = Running(directory, service.address, vendor)
        with pytest.raises(UnauthorizedError, match="its owners are not the 0 operators of this CAS"):
            cas.apply(cas.text(MEASURED), "alice", "bob")
