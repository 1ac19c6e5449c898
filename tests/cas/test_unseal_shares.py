"""A CAS whose root secret is shared out: its creation, its starts, and what its holders and others may send."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.appraise import ReferenceValues
from strongroom.attest.claims import registers_measurement
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.cas.callers.limits import Buckets, Limits
from strongroom.cas.state.root_secret import open_root_secret, read_record, rekey
from strongroom.cas.state.trust_disk import TrustDisk
from strongroom.cas.unseal.holder import give_share
from strongroom.cas.unseal.locked import LockedCas
from strongroom.cas.unseal.shamir import split
from strongroom.cas.unseal.share_files import (
    ShareFile,
    ShareSet,
    create_share_key,
    load_share_key,
    make_shares,
    public_key,
    public_text,
    read_holders,
)
from strongroom.cas.unseal.shares import Shares
from strongroom.channel import HttpClient, Identity, Server, bind
from strongroom.crypto import HpkeKey, derive
from strongroom.errors import (
    BindingError,
    ConflictError,
    FormatError,
    MeasurementError,
    NotReadyError,
    PeerIdentityError,
    StrongroomError,
    TamperedError,
    UnauthorizedError,
    UsageError,
    VerificationError,
    WrongKeyError,
)
from tests.cas.unsealing import KEYS, holders, opened, share_of, shared_cas, waiting
from tests.cas.world import MEASURED


@pytest.fixture
def shared(tmp_path):
    """A CAS of three holders, two of whom open it: its directory and its root secret."""
    return tmp_path / "cas", shared_cas(tmp_path / "cas")


def test_two_of_three_open_it_and_it_is_the_same(shared):
    directory, secret = shared
    for names in (("alice", "bob"), ("carol", "alice")):
        with waiting(directory) as cas:
            for name in names:
                told, _ = give_share(cas.url, share_of(directory, name), KEYS[name], reference=None)
            assert (told["shares"], told["threshold"], told["open"]) == (2, 2, True)
        assert cas.secret() == secret


def test_the_key_of_a_start_tells_it_from_whoever_else_answers(shared):
    directory, _ = shared
    alice = share_of(directory, "alice")
    with waiting(directory) as cas, waiting(directory) as another:
        assert another.key != cas.key
        with pytest.raises(PeerIdentityError, match=f"peer key: got {another.key}, wanted {cas.key}"):
            give_share(another.url, alice, KEYS["alice"], reference=None, key_of_start=cas.key)
        told, _ = give_share(cas.url, alice, KEYS["alice"], reference=None, key_of_start=cas.key)
        assert told["shares"] == 1


def test_what_lies_on_the_disk_is_no_share_and_no_secret(shared):
    directory, secret = shared
    opened(directory, secret)
    assert not (directory / "master.key").exists()
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".share"]) == 3
    shares = [share_of(directory, name).open(KEYS[name]) for name in KEYS]
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for value in (secret, *shares):
            assert value not in path.read_bytes() and value.hex().encode() not in path.read_bytes()


def test_a_sealed_cas_serves_nothing_else(shared):
    directory, _ = shared
    with waiting(directory) as cas, cas.http() as http:
        for method, path in [("GET", "/v1/cas"), ("POST", "/v1/attest"), ("GET", "/"), ("DELETE", "/v1/unseal")]:
            answer = http.request(method, path)
            assert (answer.status, answer.json()["code"]) == (503, "not-ready")
            with pytest.raises(NotReadyError, match="is sealed; 0 of the 2 shares that open it are there"):
                answer.expect_ok()
        status = http.get("/v1/unseal")
        assert status == {
            "unseal": "shares",
            "set": share_of(directory, "bob").set.name,
            "threshold": 2,
            "shares": 0,
            "refused": 0,
            "open": False,
        }


def test_shares_that_are_refused_are_counted_and_say_nothing(shared, tmp_path):
    directory, _ = shared
    other = tmp_path / "other"
    shared_cas(other)
    with waiting(directory) as cas, cas.http() as http:
        bob = share_of(directory, "bob")
        give_share(cas.url, bob, KEYS["bob"], reference=None)
        with pytest.raises(ConflictError, match="share 2: has been given already"):
            give_share(cas.url, bob, KEYS["bob"], reference=None)
        with pytest.raises(BindingError, match=r"claims\.set: got .* and the share is of"):
            give_share(cas.url, share_of(other, "alice"), KEYS["alice"], reference=None)
        foreign = share_of(other, "alice").open(KEYS["alice"])
        for index, share in ((1, foreign), (1, foreign[:-1]), (0, b""), (4, foreign), (255, foreign), (2, foreign)):
            with pytest.raises(UnauthorizedError, match=f"share {index}: is none of this CAS's shares"):
                cas.give(http, bytes([index]) + share)
        with pytest.raises(UnauthorizedError, match="share 0"):
            cas.give(http, b"")
        with pytest.raises(UnauthorizedError, match="was not sealed to this CAS as it runs now"):
            http.post("/v1/unseal", {"share": "AAAA"})
        for body in ({}, {"share": 7}, {"share": "%"}):
            with pytest.raises(FormatError):
                http.post("/v1/unseal", body)
        for body in ({}, {"nonce": "00"}, {"nonce": 7}, {"nonce": "zz" * 32}):
            with pytest.raises(FormatError, match="nonce"):
                http.post("/v1/unseal/offer", body)
        for path, body in (("/v1/unseal", {"share": "AAAA"}), ("/v1/unseal/offer", {"nonce": "00" * 32})):
            with pytest.raises(FormatError, match="unknown field 'more'"):
                http.post(path, {**body, "more": 1})
        told = http.get("/v1/unseal")
        assert (told["shares"], told["refused"], told["open"]) == (1, 9, False)


def test_a_sealed_cas_answers_one_address_only_so_often():
    class Still:
        def __call__(self):
            return 0.0

    identity = Identity.fresh("sealed", now=dt.datetime.now(dt.UTC))
    limits = Limits(Buckets(1, clock=Still()), loopback=True)
    locked = LockedCas(ShareSet(2, bytes(32), (bytes(32),) * 3), identity, limits=limits)
    with Server(locked.application(), bind("127.0.0.1", 0), identity) as server:
        http = HttpClient.to("127.0.0.1", server.port, expect=lambda chain: None)
        answers = [http.request("GET", "/v1/unseal") for _ in range(5)]
        http.close()
    assert [answer.status for answer in answers] == [200] * 4 + [429]


def test_a_holder_gives_nothing_to_what_the_reference_values_do_not_name(shared, tmp_path):
    directory, secret = shared
    vendor = SimulatedVendor.open(tmp_path / "vendor", now=1_750_000_000)
    attester = SimulatedAttester(vendor, MEASURED)
    reference = ReferenceValues(
        tees=("simulated",), measurements=(registers_measurement(MEASURED),), allow_simulated=vendor.root_digest
    )
    other = ReferenceValues(tees=("simulated",), measurements=("00" * 48,), allow_simulated=vendor.root_digest)
    clock = lambda: 1_750_000_000.0  # noqa: E731
    alice = share_of(directory, "alice")
    with waiting(directory) as cas, pytest.raises(VerificationError, match="evidence: the CAS showed none"):
        give_share(cas.url, alice, KEYS["alice"], reference=reference)
    with waiting(directory, attester=attester) as cas:
        with pytest.raises(MeasurementError):
            give_share(cas.url, alice, KEYS["alice"], reference=other, clock=clock)
        for name in ("alice", "carol"):
            _, result = give_share(cas.url, share_of(directory, name), KEYS[name], reference=reference, clock=clock)
            assert result is not None and result.measurement == registers_measurement(MEASURED)
    assert cas.secret() == secret


def test_holders_are_asked_before_the_secret_goes_elsewhere(shared):
    directory, secret = shared
    alice = share_of(directory, "alice")
    with waiting(directory, then="trust-disk") as cas:
        with pytest.raises(BindingError, match="would be kept by trust-disk, wanted no change") as caught:
            give_share(cas.url, alice, KEYS["alice"], reference=None)
        assert "--allow-rekey" in caught.value.hint
        for name in ("alice", "bob"):
            give_share(cas.url, share_of(directory, name), KEYS[name], reference=None, then="trust-disk")
    rekey(directory, cas.secret(), TrustDisk(directory))
    assert open_root_secret(directory) == secret


def test_new_holders_get_shares_of_a_new_set(shared):
    directory, secret = shared
    before = read_record(directory)
    rekey(directory, secret, Shares(directory, holders("alice", "carol"), 1))
    assert len(list(directory.glob("shares-*"))) == 2
    assert read_record(directory) != before
    bob = ShareFile.load(next(directory.glob("shares-*/bob.share")))
    with waiting(directory) as cas:
        with pytest.raises(BindingError, match=r"claims\.set"):
            give_share(cas.url, bob, KEYS["bob"], reference=None)
        carol = ShareFile.load(newest(directory) / "carol.share")
        give_share(cas.url, carol, KEYS["carol"], reference=None)
    assert cas.secret() == secret


def newest(directory):
    name = ShareFile.load(next(directory.glob("shares-*/bob.share"))).set.name[:16]
    return next(path for path in directory.glob("shares-*") if path.name != f"shares-{name}")


def test_a_cas_that_listens_nowhere_says_what_it_wants(shared):
    directory, _ = shared
    with pytest.raises(UsageError, match="this CAS is opened by 2 of 3 shares, and it listens nowhere"):
        open_root_secret(directory, Shares(directory))
    with pytest.raises(UsageError, match="kept by shares"):
        open_root_secret(directory)


@pytest.mark.parametrize(("names", "threshold"), [((), 1), (("alice",), None), (("alice",), 2), (("alice",), 0)])
def test_shares_for_nobody_are_not_made(tmp_path, names, threshold):
    with pytest.raises(UsageError, match="shares: "):
        open_root_secret(tmp_path / "cas", Shares(tmp_path / "cas", holders(*names), threshold))
    assert not (tmp_path / "cas" / "unseal.json").exists()


# Files


def test_a_share_opens_with_its_holder_s_key_and_unchanged_alone(shared):
    directory, _ = shared
    file = share_of(directory, "alice")
    with pytest.raises(WrongKeyError, match="share 1: is sealed to x25519:"):
        file.open(KEYS["bob"])
    wire = json.loads(file.to_bytes())
    for change in ({"holder": "bob"}, {"index": 2}, {"box": wire["box"][:-2] + "00"}, {"box": ""}):
        with pytest.raises(TamperedError, match="its file was changed"):
            ShareFile.from_bytes(json.dumps(wire | change).encode()).open(KEYS["alice"])
    for change in ({"threshold": 1}, {"salt": "00" * 32}):
        moved = wire | {"set": wire["set"] | change}
        with pytest.raises(TamperedError, match="its file was changed"):
            ShareFile.from_bytes(json.dumps(moved).encode()).open(KEYS["alice"])


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"index": 0},
        {"index": 4},
        {"index": True},
        {"index": "1"},
        {"holder": "../x"},
        {"holder": ""},
        {"key": "x25519:00"},
        {"key": "ed25519:" + "00" * 32},
        {"box": "zz"},
        {"set": None},
        {"set": {}},
        {"set": {"threshold": 1, "salt": "00", "commitments": ["00" * 32]}},
        {"set": {"threshold": 2, "salt": "00" * 32, "commitments": ["00" * 32]}},
        {"set": {"threshold": 1, "salt": "00" * 32, "commitments": ["00"]}},
        {"set": {"threshold": 1, "salt": "00" * 32, "commitments": []}},
        {"set": {"threshold": 1, "salt": "00" * 32, "commitments": ["00" * 32] * 256}},
    ],
)
def test_share_files_that_are_none(shared, change):
    wire = json.loads(share_of(shared[0], "alice").to_bytes())
    with pytest.raises(FormatError):
        ShareFile.from_bytes(json.dumps(wire | change).encode())


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"7", b"[" * 100_000, b"{" + b" " * 100_000 + b"}", b"\xff\xfe"])
def test_bytes_that_are_no_share(raw):
    with pytest.raises(FormatError, match="share file: is none"):
        ShareFile.from_bytes(raw)


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 300) | st.text(max_size=70),
        lambda each: (
            st.lists(each, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "version",
                        "holder",
                        "key",
                        "index",
                        "set",
                        "box",
                        "threshold",
                        "salt",
                        "commitments",
                        "unseal",
                        "check",
                    ]
                ),
                each,
                max_size=8,
            )
        ),
        max_leaves=12,
    )
)
def test_no_file_brings_a_reader_to_fall(tmp_path_factory, value):
    raw = json.dumps(
        {"version": 1, "unseal": "shares", "check": "00", "index": 1, **value} if isinstance(value, dict) else value
    )
    with pytest.raises(FormatError):
        ShareFile.from_bytes(raw.encode())
    directory = tmp_path_factory.getbasetemp() / "fuzzed"
    directory.mkdir(exist_ok=True)
    (directory / "unseal.json").write_text(raw)
    with pytest.raises(StrongroomError):
        open_root_secret(directory, Shares(directory))


def test_a_commitment_tells_a_share_from_a_wrong_one():
    shared, shares = make_shares(b"s" * 32, 2, 3)
    for index, share in shares.items():
        shared.check(index, share)
        for wrong in (shares[index % 3 + 1], bytes(32), share[:-1]):
            with pytest.raises(UnauthorizedError, match="is none of this CAS's shares"):
                shared.check(index, wrong)


def test_share_keys_are_kept_and_passed_on(tmp_path):
    key = create_share_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert load_share_key(tmp_path / "key").private == key.private
    assert public_key(public_text(key.public)) == key.public
    with pytest.raises(FileExistsError):
        create_share_key(tmp_path / "key")
    assert key.private.hex() not in repr(key)
    for content in (b"", b"STRONGROOM-SHARE-KEY-1 zz", b"other 00", b"STRONGROOM-SHARE-KEY-1 00\n"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(FormatError, match="wanted one line, STRONGROOM-SHARE-KEY-1"):
            load_share_key(tmp_path / "bad")


def test_holders_as_an_operator_types_them():
    one, other = public_text(HpkeKey().public), public_text(HpkeKey().public)
    assert list(read_holders([f"alice={one}", f"bob={other}"])) == ["alice", "bob"]
    for words in ([f"alice={one}", f"alice={other}"], [f"alice={one}", f"bob={one}"], [one], [f"../x={one}"]):
        with pytest.raises(UsageError, match="holder"):
            read_holders(words)
    with pytest.raises(FormatError, match="share key: got"):
        read_holders(["alice=x25519:00"])


def test_the_operator_s_http_client_needs_no_key(shared):
    """Anybody may look; the evidence is what tells holders whom they deal with."""
    with waiting(shared[0]) as cas, cas.http() as http:
        assert isinstance(http, HttpClient)
        assert http.post("/v1/unseal/offer", {"nonce": "00" * 32})["evidence"] is None


def test_the_vector_of_the_specification():
    """By the words of docs/spec/cas.md alone."""
    spec = (Path(__file__).parents[2] / "docs" / "spec" / "cas.md").read_text()
    (text,) = (text for text in re.findall(r"```json\n(.*?)```", spec, re.DOTALL) if '"r_1"' in text)
    vector = json.loads(text)
    secret, salt = bytes.fromhex(vector["secret"]), bytes.fromhex(vector["set"]["salt"])
    shares = [bytes.fromhex(share) for share in vector["shares"]]
    assert split(secret, threshold=2, count=3, random=lambda size: bytes.fromhex(vector["r_1"])) == dict(
        enumerate(shares, 1)
    )
    for index, (share, commitment) in enumerate(zip(shares, vector["set"]["commitments"], strict=True), 1):
        hashed = hashlib.sha256(b"strongroom/cas/share-commitment/v1\0" + salt + bytes([index]) + share)
        assert hashed.hexdigest() == commitment
    said = json.dumps(vector["set"], sort_keys=True, separators=(",", ":")).encode()
    name = hashlib.sha256(b"strongroom/cas/share-set/v1\0" + said).hexdigest()
    assert name == vector["name"] == ShareSet.from_wire(vector["set"]).name
    for label, of in (("rows/v2", "rows"), ("root-key/v1", "root_key")):
        assert derive(secret, f"strongroom/cas/{label}").hex() == vector[of]
    assert derive(secret, "strongroom/cas/root-check/v1", length=16).hex() == vector["check"]
