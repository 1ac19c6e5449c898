"""What an owner does with a CAS: policies in versions, secrets, anchors, the log, and a CAS that starts again."""

from __future__ import annotations

import itertools
import json
import sqlite3
import stat

import pytest

from strongroom.cas import CasAddress, OwnerClient, running_cas
from strongroom.cas.client.address import split_address
from strongroom.cas.policy.restores import Restored
from strongroom.cas.policy.version import policy_digest, sign_policy
from strongroom.cas.service.server import prepare
from strongroom.cas.state.store import Store
from strongroom.cas.wire import b64
from strongroom.channel import bind
from strongroom.crypto import SigningKey
from strongroom.errors import (
    CasUnreachableError,
    ConflictError,
    FormatError,
    IntegrityError,
    PeerIdentityError,
    PolicyError,
    PortInUseError,
    RollbackError,
    TamperedError,
    UnauthorizedError,
    UnknownPolicyError,
    UsageError,
    VerificationError,
    WrongKeyError,
)
from strongroom.sealed import Root
from tests.cas.world import VAULT_KEY, cas_in, world_in

ONE, TWO, THREE = (Root(n, bytes([n]) * 32) for n in (1, 2, 3))


# Policies


def test_a_policy_is_read_back_by_anybody_as_its_owner_signed_it(world):
    with OwnerClient(world.cas.address.url, cas_root=world.cas.address.cas_root) as anybody:
        found = anybody.policy(world.name)
        assert (found.text, found.owner) == (world.text(), world.owner.public.fingerprint)
        assert anybody.describe()["cas_root"] == world.cas.address.cas_root
        with pytest.raises(UsageError, match="owner key: this needs one"):
            anybody.apply(world.text())
        with pytest.raises(UnauthorizedError, match="a client certificate with the owner's key is wanted"):
            anybody.put_secret(world.name, "token", b"x")
        with pytest.raises(UnknownPolicyError, match="holds none of the name 'acme/nothing'"):
            anybody.policy("acme/nothing")


def test_versions_form_a_chain(world):
    first = world.policy
    second = world.renew(more="")
    assert (second.version, second.previous) == (2, first.digest)
    for version, previous, error, says in [
        (1, "", RollbackError, "policy.version: got 1, and 2 is the newest"),
        (2, first.digest, ConflictError, f"another document is version 2: {second.digest}"),
        (3, first.digest, PolicyError, f"policy.previous: got {first.digest}, wanted {second.digest}"),
        (3, "", PolicyError, f"policy.previous: got none, wanted {second.digest}"),
        (4, second.digest, PolicyError, "policy.version: got 4, wanted 3"),
    ]:
        with pytest.raises(error, match=says):
            world.client.apply(world.text(version=version, previous=previous))
    assert world.client.policy(world.name).digest == second.digest


def test_an_old_version_is_not_accepted_again(world):
    old = world.policy.text
    world.renew(more="")
    with pytest.raises(RollbackError, match=r"policy\.version: got 1, and 2 is the newest"):
        world.client.apply(old)
    assert world.policy.version == 2


def test_a_first_version_that_follows_something_is_refused(world):
    with pytest.raises(PolicyError, match=r"policy\.version: got 2, wanted 1"):
        world.client.apply(world.text(name="acme/new", version=2, previous="sha256:" + "00" * 32))


def test_the_newest_version_may_be_applied_again(world):
    before = world.client.log()
    assert world.client.apply(world.policy.text).digest == world.policy.digest
    assert world.client.log() == before


def test_an_owner_cannot_sign_for_another(world):
    with pytest.raises(UnauthorizedError, match=r"policy.owner: got .*, the key that signed it is"):
        world.client.apply(world.text(name="acme/other", owner=SigningKey.generate().public.fingerprint))


def test_a_name_stays_with_whoever_had_it_first(world):
    squatter = SigningKey.generate()
    with world.cas.owner(squatter) as client:
        mine = squatter.public.fingerprint
        with pytest.raises(ConflictError):
            client.apply(world.text(owner=mine))
        with pytest.raises(UnauthorizedError, match=f"owner: got {mine}, wanted {world.owner.public.fingerprint}"):
            client.apply(world.text(owner=mine, version=2, previous=world.policy.digest))
        with pytest.raises(UnauthorizedError):
            client.put_vault_key(world.name, "data", VAULT_KEY)
        with pytest.raises(UnauthorizedError):
            client.anchor(world.name, "data").read()
        assert client.log() == []
    assert world.policy.version == 1


def test_a_name_in_the_path_must_be_the_document_s(world):
    text = world.text()
    with pytest.raises(PolicyError, match=f"policy.name: got {world.name}, wanted acme/other"):
        signature = b64(sign_policy(text, world.owner))
        world.client._put("/v1/policies/acme/other", {"text": text, "signature": signature})


@pytest.mark.parametrize(
    ("lie", "error", "says"),
    [
        ({"text": ("train.py", "evil.py")}, VerificationError, "policy: signature: does not match the key"),
        ({"text": ("/train", "/drain")}, PolicyError, "policy: asked for acme-[0-9]+/train, got"),
        ({"text": ('owner = "sha256:', 'owner = "sha256:' + "0" * 64 + '"\n#')}, VerificationError, "the key that si"),
        ({"owner": ("M", "A")}, FormatError, "public key: not a DER"),
        ({"signature": ("", "")}, VerificationError, "policy: signature: 0 bytes, wanted 64"),
        ({"signature": None}, FormatError, "signature: got NoneType, wanted a string"),
    ],
)
def test_a_cas_s_word_for_a_policy_is_not_enough(world, monkeypatch, lie, error, says):
    with world.cas.owner() as client:
        answer = client._http.get(f"/v1/policies/{world.name}")
        for field, change in lie.items():
            answer[field] = change and (answer[field].replace(*change, 1) if change[0] else "")
        monkeypatch.setattr(client._http, "get", lambda path: answer)
        with pytest.raises(error, match=says):
            client.policy(world.name)


# Secrets


def test_only_secrets_that_the_policy_names_are_stored(world):
    for name in ("nothing", "seed", "vault:nothing", "generated:seed", "", "../token"):
        with pytest.raises((PolicyError, UsageError), match=r"names none called|knows no such path"):
            world.client.put_secret(world.name, name, b"x")
    with pytest.raises(UnknownPolicyError):
        world.client.put_secret("acme/nothing", "token", b"x")


def test_a_secret_that_could_not_be_used_is_refused(world):
    with pytest.raises(FormatError, match="value: 5 bytes, wanted a vault's key of 32"):
        world.client.put_vault_key(world.name, "data", b"short")
    with pytest.raises(FormatError, match="value: holds a zero byte"):
        world.client.put_secret(world.name, "token", b"a\0b")


# Anchors


def test_an_anchor_is_compared_and_swapped(world):
    anchor = world.client.anchor(world.name, "out")
    assert anchor.read() is None
    with pytest.raises(ConflictError, match="anchor: holds no root, wanted 1:"):
        anchor.advance(ONE, TWO)
    anchor.advance(None, ONE)
    anchor.advance(None, ONE)  # a lost answer
    anchor.advance(ONE, TWO)
    with pytest.raises(ConflictError, match="anchor: holds 2:"):
        anchor.advance(ONE, THREE)
    assert anchor.read() == TWO
    assert world.client.anchor(world.name, "data").read() is None


def test_an_owner_may_put_another_vault_in_a_vault_s_place(world):
    anchor = world.client.anchor(world.name, "out")
    anchor.advance(None, TWO)
    with pytest.raises(RollbackError, match="wanted a root after 2:"):
        anchor.advance(TWO, ONE)
    for _ in range(2):  # an answer may be lost
        world.client.restore_anchor(world.name, "out", TWO, ONE, reason="another vault")
    assert anchor.read() == ONE
    *_, moved, entry = world.client.log()
    assert (moved["event"], entry["event"]) == ("anchor", "restored")
    assert json.loads(entry["detail"]) == {
        "vault": "out",
        "old": str(TWO),
        "root": str(ONE),
        "reason": "another vault",
        "by": world.owner.public.fingerprint,
    }


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "\x1b[2J", "x" * 201])
def test_nothing_goes_back_without_a_reason(world, reason):
    world.client.anchor(world.name, "out").advance(None, TWO)
    with pytest.raises(FormatError, match="reason"):
        world.client.restore_anchor(world.name, "out", TWO, ONE, reason=reason)
    assert world.client.anchor(world.name, "out").read() == TWO


def test_an_enclaves_anchor_moves_forward_by_epoch_sequence_and_log(tmp_path):
    store = Store(tmp_path)
    tag = bytes(16)
    restored = Root(*ONE.version, 1)
    steps = [None, ONE, Root(*ONE.version, 0, 1, tag), Root(*ONE.version, 0, 2, tag), TWO]
    for old, new in itertools.pairwise(steps):
        assert new is not None
        store.advance_anchor("a/b", "out", old, new, now=1)
        assert store.anchor("a/b", "out") == new
    with pytest.raises(RollbackError, match="of the same epoch"):
        store.advance_anchor("a/b", "out", TWO, restored, now=1)
    store.advance_anchor("a/b", "out", TWO, restored, restored=Restored("disk failed"), now=1)
    for older in (THREE, TWO, ONE, Root(*THREE.version, 0, 9, tag)):
        with pytest.raises(RollbackError, match="wanted a root after 1:"):
            store.advance_anchor("a/b", "out", restored, older, now=1)
    store.close()


def test_an_anchor_of_no_vault_is_refused(world):
    for vault in ("nothing", "../out", "out/x", "a b", "%2e"):
        with pytest.raises((PolicyError, UsageError)):
            world.client.anchor(world.name, vault).read()


# The log


def test_the_log_tells_an_owner_of_its_own_policies_only(world):
    with world_in(world.cas) as other:
        other.client.anchor(other.name, "out").advance(None, ONE)
        mine, theirs = world.client.log(), other.client.log()
    assert [e["event"] for e in mine] == ["policy", "secret", "secret", "secret"]
    assert {e["policy"] for e in mine} == {world.name}
    assert {e["policy"] for e in theirs} == {other.name}
    by = other.owner.public.fingerprint
    assert json.loads(theirs[-1]["detail"]) == {"root": str(ONE), "vault": "out", "by": by}
    assert [e["number"] for e in mine] == sorted(e["number"] for e in mine)
    assert world.client.log(after=mine[1]["number"]) == mine[2:]


def test_the_log_comes_in_pages(world, monkeypatch):
    monkeypatch.setattr("strongroom.cas.api.log.PAGE", 3)
    with world_in(world.cas) as other:
        assert len(other.client.log()) == len(world.client.log()) == 4


@pytest.fixture
def closed(tmp_path):
    """The directory of a CAS that has stopped, with a policy, an anchor and a few entries in its log."""
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        world.client.anchor(world.name, "out").advance(None, ONE)
    return tmp_path / "cas"


def edit(directory, *statements):
    with sqlite3.connect(directory / "cas.sqlite") as db:
        for statement in statements:
            assert db.execute(statement).rowcount > 0
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log SET detail = '{}' WHERE number = 2",
        "UPDATE log SET time = time + 1 WHERE number = 1",
        "UPDATE log SET previous = 0 WHERE number = 3",
        "UPDATE log SET salt = zeroblob(16) WHERE number = 4",
        "UPDATE nodes SET hash = zeroblob(32) WHERE level = 0 AND place = 1",
        "UPDATE nodes SET hash = zeroblob(32) WHERE level = 1",
        "DELETE FROM nodes WHERE place = 1",
        "UPDATE nodes SET hash = CAST(hash || x'00' AS BLOB) WHERE level = 0 AND place = 2",
        "DELETE FROM log WHERE number = 2",
        "UPDATE log SET number = -1 WHERE number = 1",
    ],
)
def test_an_altered_log_is_found_when_it_is_read(closed, statement):
    edit(closed, statement)
    store = Store(closed)
    with pytest.raises(IntegrityError, match=r"log( entry \d+|: node \d+ of level \d)(:)? was changed or removed"):
        store.log()
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM log WHERE number = (SELECT max(number) FROM log)",
        "DELETE FROM log",
        "INSERT INTO log SELECT number + 100, time, event, policy, detail, previous, salt FROM log WHERE number = 1",
    ],
)
def test_a_log_with_another_end_is_found_at_once(closed, statement):
    edit(closed, statement)
    with pytest.raises(IntegrityError, match="log: ends with entry"):
        Store(closed)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE policies SET name = name || 'x'",
        "UPDATE secrets SET name = name || 'x'",
        "UPDATE anchors SET vault = vault || 'x'",
        "UPDATE secrets SET entry = entry + 1 WHERE name = 'token'",
        "UPDATE secrets SET box = (SELECT box FROM secrets WHERE name = 'vault:data') WHERE name = 'token'",
        "DELETE FROM policies",
        "DELETE FROM secrets WHERE name = 'token'",
        "DELETE FROM anchors",
        "INSERT INTO secrets SELECT policy, 'more', entry, box FROM secrets WHERE name = 'token'",
    ],
)
def test_rows_changed_moved_removed_or_added_are_found_at_once(closed, statement):
    edit(closed, statement)
    with pytest.raises(IntegrityError, match=r"cas.sqlite: its rows are not those that its head stands for"):
        Store(closed)


def test_a_row_changed_under_a_running_cas_is_found_when_it_is_next_read(closed):
    store = Store(closed)
    name = store.log()[1].policy
    edit(closed, "UPDATE secrets SET box = zeroblob(64) WHERE name = 'token'")
    with pytest.raises(IntegrityError, match=r"cas.sqlite: "):
        store.secret(name, "token")
    store.close()


def test_a_box_changed_behind_its_nonce_is_found_when_it_is_read(closed):
    edit(closed, "UPDATE secrets SET box = CAST(substr(box, 1, 24) || x'00112233' AS BLOB) WHERE name = 'token'")
    store = Store(closed)
    with pytest.raises(TamperedError, match=r"cas.sqlite: row secrets/.*/token was changed"):
        store.secret(store.log()[1].policy, "token")
    store.close()


# Starting again


def test_a_cas_that_starts_again_is_the_same_and_knows_everything(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        world.client.anchor(world.name, "out").advance(None, ONE)
        with world.session() as session:
            before, root = session.attest(), cas.address.cas_root
        log = world.client.log()
    with cas_in(tmp_path) as cas, cas.owner(world.owner) as client:
        world.cas, world.client = cas, client
        assert cas.address.cas_root == root
        assert client.log() == log
        assert client.policy(world.name).text == world.text()
        assert client.anchor(world.name, "out").read() == ONE
        with world.session() as session:
            after = session.attest()
    assert (after.vault_keys, after.environment) == (before.vault_keys, before.environment)


def test_nothing_that_a_cas_writes_can_be_read_by_others(closed):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in closed.iterdir()}
    assert modes == dict.fromkeys(["cas.json", "cas.sqlite", "master.key", "root.key", "unseal.json"], 0o600)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_files_of_a_running_cas_cannot_be_read_by_others(world):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in world.cas.directory.iterdir()}
    assert {"cas.sqlite", "cas.sqlite-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_another_master_key_opens_nothing(closed):
    (closed / "master.key").write_bytes(bytes(32))
    with pytest.raises(WrongKeyError, match=r"root secret: another one than unseal\.json was made of"):
        prepare(closed)
    (closed / "unseal.json").unlink()
    with pytest.raises(WrongKeyError, match="made with"):
        prepare(closed)


def test_a_lost_master_key_is_not_replaced(closed):
    (closed / "master.key").unlink()
    with pytest.raises(WrongKeyError, match="is missing"):
        prepare(closed)
    assert not (closed / "master.key").exists()
    (closed / "master.key").write_bytes(b"short")
    with pytest.raises(WrongKeyError, match="5 bytes, wanted 32"):
        prepare(closed)


def test_a_database_of_something_else_is_refused(closed):
    edit(closed, "UPDATE head SET id = 1")
    with sqlite3.connect(closed / "cas.sqlite") as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(IntegrityError, match="got version 7 of application 0x53724361, wanted 5"):
        prepare(closed)
    (closed / "cas.sqlite").write_bytes(b"not a database at all, but long enough to look" * 100)
    with pytest.raises(IntegrityError, match="file is not a database"):
        prepare(closed)


def test_a_root_key_without_its_certificate_is_refused(closed):
    key = closed / "root.key"
    key.write_bytes(SigningKey.generate().pem())
    with pytest.raises(FormatError, match=r"certificate: not X.509 PEM"):
        prepare(closed)


def test_a_taken_port_leaves_no_trace(tmp_path):
    with bind("127.0.0.1", 0) as sock, pytest.raises(PortInUseError):
        prepare(tmp_path / "cas", port=sock.getsockname()[1])
    assert not (tmp_path / "cas").exists()


# Addresses


def test_an_address_is_saved_and_found(tmp_path):
    with running_cas(tmp_path) as address:
        assert CasAddress.load(tmp_path / "cas.json") == address
    for text in ("", "[]", "{}", '{"url": 1}', "\0"):
        (tmp_path / "cas.json").write_text(text)
        with pytest.raises(FormatError, match="not the address of a CAS"):
            CasAddress.load(tmp_path / "cas.json")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://localhost:1", ("localhost", 1)),
        ("https://[::1]:443/", ("::1", 443)),
        ("https://localhost", None),
        ("http://localhost:1", None),
        ("https://user@localhost:1", None),
        ("https://localhost:1/x", None),
        ("https://localhost:1?x", None),
        ("https://localhost:99999", None),
        ("https://localhost:x", None),
        ("https://[::1", None),
        ("https://:1", None),
        ("", None),
    ],
)
def test_only_plain_addresses_are_taken(url, parts):
    if parts:
        assert split_address(url) == parts
    else:
        with pytest.raises(UsageError, match="address: got"):
            split_address(url)


def test_a_cas_that_does_not_answer_is_said_to_be_unreachable():
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    client = OwnerClient(f"https://127.0.0.1:{port}", cas_root="sha256:" + "00" * 32)
    with client, pytest.raises(CasUnreachableError, match=f"CAS: 127.0.0.1:{port}: connection refused"):
        client.describe()


def test_a_cas_of_another_root_is_not_asked(world):
    client = OwnerClient(world.cas.address.url, cas_root="sha256:" + "00" * 32)
    with client, pytest.raises(PeerIdentityError, match="peer authority: got"):
        client.describe()


def test_the_public_names_are_these():
    import strongroom.cas

    assert set(strongroom.cas.__all__) == {
        "CasAddress",
        "CasAnchor",
        "EnclaveSession",
        "OwnerClient",
        "Policy",
        "Provisions",
        "ServiceResult",
        "parse_policy",
        "running_cas",
    }


def test_a_policy_s_digest_is_of_its_bytes(world):
    assert world.policy.digest == policy_digest(world.text())
