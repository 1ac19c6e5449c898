"""Audits: what an owner exports is checked offline, and what somebody changed in it is found."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strongroom.cas import OwnerClient
from strongroom.cas.log.audit import FORMAT, Audit, verify_audit
from strongroom.cas.log.head import Head
from strongroom.cas.log.witness import Witness
from strongroom.cli.cas.witness import cosign_head
from strongroom.cli.main import main
from strongroom.errors import FormatError, RollbackError, StrongroomError, TamperedError, UsageError, VerificationError
from tests.cas.world import cas_in, world_in


class Case:
    """An audit of one policy among others, with three witnesses, one of whom has said nothing."""

    def __init__(self, directory):
        names = ("w.example/1", "w.example/2", "w.example/3")
        self.witnesses = [Witness(directory / str(i), name=name) for i, name in enumerate(names)]
        self.keys = [one.key for one in self.witnesses]
        with cas_in(directory, witnesses=self.keys) as cas, world_in(cas) as world, world_in(cas) as other:
            self.cas_root = cas.address.cas_root
            for number, witness in enumerate(self.witnesses[:2]):
                world.client.put_secret(world.name, "token", b"%d" % number)
                other.client.put_secret(other.name, "token", b"x")
                note = cosign_head(witness, other.client, self.cas_root, now=1000 + number)
                world.client.put_cosigned(note)
            world.client.put_secret(world.name, "token", b"last")
            self.earlier = world.client._heads.read()
            other.client.put_secret(other.name, "token", b"x")
            self.audit = world.client.audit()
            self.other = other.client.audit()
            self.name, self.owner = world.name, world.owner
            self.log = world.client.log()
        self.wire = json.loads(self.audit.to_bytes())

    def verify(self, audit=None, **options):
        return verify_audit(audit or self.audit, cas_root=self.cas_root, **options)

    def bent(self, change):
        wire = json.loads(json.dumps(self.wire))
        change(wire)
        return Audit.parse(json.dumps(wire).encode())


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("audit"))


def test_an_audit_is_read_back_and_verifies(case):
    assert Audit.parse(case.audit.to_bytes()) == case.audit
    report = case.verify(witnesses=case.keys, quorum=2, seen=case.earlier)
    assert dict(report.policies) == {case.name: len(case.log)}
    assert report.seen == case.earlier
    assert [entry.to_wire() for entry, _ in case.audit.entries] == case.log
    first, second, third = report.witnesses
    assert (first.time, second.time, third.time) == (1000, 1001, None)
    assert report.witnessed == first.size < second.size < report.head.size
    assert case.verify(witnesses=case.keys, quorum=1).witnessed == second.size
    assert case.verify().witnessed == 0


def test_the_audits_of_two_owners_share_nothing_but_hashes(case):
    mine, theirs = (one.to_bytes().decode() for one in (case.audit, case.other))
    assert case.name in mine
    assert case.name not in theirs
    salts = {entry.salt.hex() for entry, _ in case.audit.entries}
    assert len(salts) == len(case.log)
    assert not any(salt in theirs for salt in salts)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda w: w["entries"].pop(2), TamperedError, "entries are missing"),
        (lambda w: w["entries"].pop(0), TamperedError, "entries are missing"),
        (lambda w: w["entries"].insert(1, w["entries"][0]), TamperedError, "entries are missing"),
        (lambda w: w["entries"].reverse(), TamperedError, "entries are missing"),
        (lambda w: w["entries"][1].update(time=1), TamperedError, "is not in the log"),
        (lambda w: w["entries"][1].update(detail="{}"), TamperedError, "is not in the log"),
        (lambda w: w["entries"][1].update(salt="00" * 16), TamperedError, "is not in the log"),
        (lambda w: w["entries"][1].update(previous=0), TamperedError, "is not in the log"),
        (lambda w: w["entries"][1]["proof"].pop(), FormatError, "inclusion proof"),
        (lambda w: w["entries"][1].update(proof=w["entries"][2]["proof"]), TamperedError, "is not in the log"),
        (lambda w: w["seen"].update(head=w["seen"]["head"][:-8] + "00000000"), RollbackError, "does not begin with"),
        (lambda w: w["seen"].update(head=str(Head(9999, bytes(32)))), RollbackError, "was rolled back"),
        (lambda w: w["witnessed"][0]["proof"].reverse(), RollbackError, "does not begin with"),
        (lambda w: w["witnessed"][0].update(proof=[]), FormatError, "consistency proof"),
        (lambda w: w.update(checkpoint=w["witnessed"][0]["checkpoint"]), RollbackError, "was rolled back"),
        (lambda w: w.update(cas_root="sha256:" + "00" * 32), VerificationError, "audit: is of the CAS"),
        (lambda w: w.update(checkpoint=w["checkpoint"].replace("\n", "\r\n", 1)), FormatError, "note"),
    ],
)
def test_whatever_is_changed_is_found(case, change, error, says):
    with pytest.raises(error, match=says):
        case.verify(case.bent(change), witnesses=case.keys, quorum=2)


def test_every_value_of_an_audit_counts(case):
    """Any digit or letter of it changed is refused."""
    text = case.audit.to_bytes().decode()
    places = [i for i, c in enumerate(text) if c.isalnum()]
    for at in places[:: max(1, len(places) // 300)]:
        new = "0" if text[at] != "0" else "1"
        with pytest.raises(StrongroomError):
            case.verify(Audit.parse((text[:at] + new + text[at + 1 :]).encode()), witnesses=case.keys, quorum=2)


def test_another_cas_s_audit_is_refused(case):
    with pytest.raises(VerificationError, match="is of the CAS"):
        verify_audit(case.audit, cas_root="sha256:" + "00" * 32)


def test_too_few_witnesses_are_refused_and_strangers_do_not_count(case, tmp_path):
    with pytest.raises(VerificationError, match="2 of 3 have cosigned, wanted 3"):
        case.verify(witnesses=case.keys, quorum=3)
    strangers = [Witness(tmp_path, name=case.keys[0].name).key]
    with pytest.raises(VerificationError, match="0 of 1 have cosigned, wanted 1"):
        case.verify(witnesses=strangers, quorum=1)
    with pytest.raises(UsageError, match="quorum: got 4"):
        case.verify(witnesses=case.keys, quorum=4)
    with pytest.raises(UsageError, match="given twice"):
        case.verify(witnesses=[case.keys[0], case.keys[0]], quorum=2)


def test_a_head_seen_elsewhere_must_be_extended(case):
    for seen, error in (
        (Head(case.earlier.size, bytes(32)), RollbackError),
        (Head(10**6, bytes(32)), RollbackError),
        (Head(1, bytes(32)), UsageError),
    ):
        with pytest.raises(error):
            case.verify(seen=seen)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"format": FORMAT}).encode(),
        json.dumps({"format": "strongroom-audit-2"}).encode(),
    ],
)
def test_what_is_no_audit_is_said_to_be_none(data):
    with pytest.raises(FormatError, match="audit"):
        Audit.parse(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.update(more=1),
        lambda w: w.update(entries=[1]),
        lambda w: w.update(entries={}),
        lambda w: w.update(seen=None),
        lambda w: w.update(witnessed=[{}]),
        lambda w: w.update(witnessed=w["witnessed"] * 40),
        lambda w: w.update(key="AAAA"),
        lambda w: w["seen"].update(proof=["00" * 32] * 65),
        lambda w: w["seen"].update(proof=["00"]),
        lambda w: w["seen"].update(proof=[7]),
        lambda w: w["entries"][0].update(number=True),
        lambda w: w["entries"][0].update(number=-1),
        lambda w: w["entries"][0].update(number=1 << 70),
        lambda w: w["entries"][0].update(detail="\ud800"),
        lambda w: w["entries"][0].update(salt="AA" * 16),
        lambda w: w["entries"][0].pop("proof"),
    ],
)
def test_an_audit_of_another_form_is_refused(case, change):
    with pytest.raises(FormatError):
        case.bent(change)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), size=st.integers(0, 40), more=st.binary(max_size=20))
def test_a_spliced_audit_raises_nothing_else(case, at, size, more):
    data = case.audit.to_bytes()
    place = int(at * len(data))
    try:
        audit = Audit.parse(data[:place] + more + data[place + size :])
        case.verify(audit, witnesses=case.keys, quorum=2)
    except StrongroomError:
        pass
    else:
        assert audit == case.audit


def test_proofs_come_in_pages_too(tmp_path, monkeypatch):
    monkeypatch.setattr("strongroom.cas.api.log.PROVED_PAGE", 3)
    with cas_in(tmp_path) as cas, world_in(cas) as world, world_in(cas) as other:
        for _ in range(4):
            other.client.put_secret(other.name, "token", b"x")
        audit = world.client.audit()
        assert len(audit.entries) == 4
        assert len(other.client.audit().entries) == 8
        verify_audit(audit, cas_root=cas.address.cas_root)


def test_entries_and_their_proofs_are_for_their_owner_only(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas):
        with OwnerClient(cas.address.url, cas_root=cas.address.cas_root) as nobody:
            assert nobody.log_head()
            assert nobody.log_consistency(1, 3)
            for path in ("/v1/log", "/v1/log?proofs=2"):
                assert nobody._http.request("GET", path).status == 403
        with cas.owner() as stranger:
            assert stranger.audit().entries == ()
            size = stranger._heads.read().size
            for path in (
                f"/v1/log?proofs={size + 1}",
                "/v1/log?proofs=x",
                "/v1/log/consistency?from=1",
                "/v1/log/consistency?from=2&to=1",
                f"/v1/log/consistency?from=1&to={size + 1}",
            ):
                assert stranger._http.request("GET", path).status == 400


# The command line


@pytest.fixture
def exported(case, tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    path = tmp_path / "audit.json"
    path.write_bytes(case.audit.to_bytes())
    return path


def test_an_exported_audit_is_verified_offline(case, exported, capsys):
    witnesses = [word for key in case.keys[:2] for word in ("--witness", str(key))]
    command = ["cas", "audit", "verify", str(exported), "--cas-root", case.cas_root, *witnesses]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"{len(case.log)} of {case.name}" in shown
    assert "by 2 of 2" in shown
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policies"] == {case.name: len(case.log)}
    assert [one["time"] for one in told["witnesses"]] == [1000, 1001]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda w: w["entries"].pop(1), 23),
        (lambda w: w["seen"].update(head=w["seen"]["head"][:-8] + "00000000"), 24),
        (lambda w: w.update(checkpoint=w["checkpoint"].replace("\n", " ", 1)), 31),
        (lambda w: w.update(format="x"), 10),
    ],
)
def test_each_failure_has_its_exit_status(case, exported, capsys, change, status):
    wire = json.loads(exported.read_text())
    change(wire)
    exported.write_text(json.dumps(wire))
    assert main(["cas", "audit", "verify", str(exported), "--cas-root", case.cas_root]) == status
    assert capsys.readouterr().err.startswith("strongroom: error: ")


def test_too_few_witnesses_end_with_status_31(case, exported):
    command = ["cas", "audit", "verify", str(exported), "--cas-root", case.cas_root, "--witness", str(case.keys[2])]
    assert main(command) == 31
    assert main([*command, "--quorum", "0"]) == 0


def test_show_prints_what_there_is_and_says_that_it_was_not_verified(case, exported, capsys):
    assert main(["cas", "audit", "show", str(exported), "--cas-root", case.cas_root]) == 0
    out, err = capsys.readouterr()
    assert "cosigned by w.example/1" in out
    assert "nothing of this was verified" in err


def test_usage(case, exported, capsys):
    assert main(["cas", "audit", "verify", str(exported)]) == 2  # whose log?
    assert main(["cas", "audit", "show", str(exported), "--cas-root", case.cas_root, "--quorum", "1"]) == 2
    assert main(["cas", "audit", "export", "--cas", "https://127.0.0.1:1", "--cas-root", case.cas_root]) == 2
    capsys.readouterr()


def test_a_cas_is_audited_witnessed_and_found_rolled_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    state = ["cas", "witness", "--state", str(tmp_path / "w")]
    assert main([*state, "--name", "w.example/1", "--key-only", "--json"]) == 0
    key = json.loads(capsys.readouterr().out)["key"]
    copy = tmp_path / "copy"

    def at(cas, *words):
        return main([*words, "--cas", cas.address.url, "--cas-root", cas.address.cas_root])

    from strongroom.cas.log.note import WitnessKey

    with cas_in(tmp_path, witnesses=[WitnessKey.parse(key)]) as cas, world_in(cas) as world:
        (tmp_path / "owner.pem").write_bytes(world.owner.pem())
        owner = ["--owner", str(tmp_path / "owner.pem")]
        copy.write_bytes((cas.directory / "cas.sqlite").read_bytes())
        assert at(cas, *state, "--out", str(tmp_path / "head.note")) == 0
        assert (tmp_path / "head.note").read_text().count("\u2014") == 2
        assert at(cas, "cas", "audit", "verify", *owner, "--witness", key) == 0
        assert at(cas, "cas", "audit", "export", str(tmp_path / "a.json"), *owner) == 0
        with monkeypatch.context() as patched:  # what would not be read back is not written
            patched.setattr("strongroom.cli.cas.audit.MAX_AUDIT", 100)
            assert at(cas, "cas", "audit", "export", str(tmp_path / "b.json"), *owner) == 10
            assert not (tmp_path / "b.json").exists()
    capsys.readouterr()
    with cas_in(tmp_path) as cas, cas.owner(world.owner) as client:
        client.put_secret(world.name, "token", b"y")
        for path in cas.directory.glob("cas.sqlite*"):
            (tmp_path / f"old-{path.name}").write_bytes(path.read_bytes())
        client.put_secret(world.name, "token", b"z")
        assert at(cas, *state) == 0
        assert at(cas, "cas", "log", *owner) == 0
    capsys.readouterr()
    for path in (tmp_path / "cas").glob("cas.sqlite*"):
        path.unlink()
    for path in tmp_path.glob("old-cas.sqlite*"):
        path.rename(tmp_path / "cas" / path.name.removeprefix("old-"))
    with cas_in(tmp_path) as cas:
        for words in (state, ["cas", "audit", "verify", *owner], ["cas", "log", *owner]):
            assert at(cas, *words) == 24
            assert "rolled back" in capsys.readouterr().err
