"""A server's log of what it revealed: it is there before a share leaves, and whatever is done to it is found."""

import contextlib
import datetime as dt
import json
import random
import re
import stat
import subprocess
import sys

import pytest
import torch

from strongroom import mpc
from strongroom.cli.main import main
from strongroom.errors import FormatError, LockedError, MpcError, RefusedError, TamperedError, UsageError
from strongroom.mpc.audit import AuditLog, compare, read, verify
from strongroom.mpc.policy import Allow, Policy, Reveal
from strongroom.mpc.tensor.world import current
from strongroom.storage import MemoryStorage
from strongroom.testing.storage import FaultyStorage, PowerCutError
from tests.mpc.parties import Recorder

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=dt.UTC)


def clock():
    return NOW


def opened(number=1, line=7):
    return Reveal((2, 3), frozenset({"lab", "clinic"}), ("P0",), "/srv/predict.py", line, "ab" * 32)


def written(count=3, party="P0", line=7):
    """A log of one epoch."""
    storage = MemoryStorage(b"")
    log = AuditLog(storage, now=clock)
    log.add("begin", {"epoch": "e1", "party": party, "settings": "frac=16", "identities": ""})
    for number in range(1, count + 1):
        log.reveal("reveal", opened(line=line), {"epoch": "e1", "number": number, "transcript": f"t{number}"})
    log.add("end", {"epoch": "e1", "error": None})
    return bytes(storage.data)


def program():
    x = mpc.share(lambda: torch.ones(2, 3), source=0, shape=(2, 3), owners=["clinic"])
    mpc.reveal(x, to=1)
    return mpc.reveal(x.sum(), public=True)


def logged(tmp_path, run=program, **arguments):
    with mpc.local_world(audit=tmp_path, **arguments) as world:
        return world.run(run)


def test_every_reveal_is_logged_at_both_servers_with_its_line(tmp_path):
    logged(tmp_path)
    logged(tmp_path)
    paths = [tmp_path / "P0.audit", tmp_path / "P1.audit"]
    assert sorted(tmp_path.iterdir()) == paths
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        log = read(path)
        assert [record.kind for record in log.records] == ["begin", "reveal", "reveal", "end"] * 2
        begin, first, second, end = (record.fields for record in log.records[:4])
        assert begin["party"] == path.stem and begin["settings"] == "frac=16 bound=15 exact=0"
        assert (first["number"], first["shape"], first["owners"], first["to"]) == (1, [2, 3], ["P0", "clinic"], ["P1"])
        assert (second["number"], second["shape"], second["to"]) == (2, [], ["public"])
        assert first["file"] == __file__ and first["line"] == program.__code__.co_firstlineno + 2
        assert len(first["program"]) == 64 and first["transcript"] != second["transcript"]
        assert end["error"] is None and end["reveals"] == 2
        assert len(log.epochs()) == 2
    assert compare(*map(read, paths)) == []


def test_a_refusal_and_an_error_are_logged_too(tmp_path):
    with pytest.raises(RefusedError):
        logged(tmp_path, policy=[Policy((Allow("clinic", ("P1",)), Allow("P0", ("P1", "public")))), None])
    refusing, other = read(tmp_path / "P0.audit"), read(tmp_path / "P1.audit")
    assert [record.kind for record in refusing.records] == ["begin", "reveal", "refused", "end"]
    assert "clinic's policy allows P1" in refusing.records[2].fields["why"]
    assert refusing.records[3].fields["error"].startswith("reveal: a number of clinic to public")
    # The other had agreed; what one server refuses was not revealed, and is no contradiction.
    assert [record.kind for record in other.records] == ["begin", "reveal", "reveal", "end"]
    assert compare(refusing, other) == []


def test_what_cannot_be_logged_is_not_revealed(tmp_path, monkeypatch):
    """The disk is full at P0: neither server's share leaves."""
    add = AuditLog.add

    def full(self, kind, fields):
        if kind == "reveal" and current().party.rank == 0:
            raise OSError(28, "No space left on device")
        add(self, kind, fields)

    monkeypatch.setattr(AuditLog, "add", full)
    recorder = Recorder()

    def one(party):
        with mpc.World(party, audit=tmp_path / f"{party.rank}.audit"):
            program()

    with pytest.raises(OSError, match="No space left"):
        mpc.run_local(one, observer=recorder)
    assert {len(payload) for _, _, payload in recorder.frames} <= {0, 128}


def test_the_log_is_durable_before_the_share_leaves(tmp_path, monkeypatch):
    recorder, seen = Recorder(), []
    sync = AuditLog.add

    def add(self, kind, fields):
        sync(self, kind, fields)
        if kind == "reveal":
            seen.append(sorted(len(payload) for _, _, payload in recorder.frames)[-1])

    monkeypatch.setattr(AuditLog, "add", add)

    def one(party):
        with mpc.World(party, audit=tmp_path / f"{party.rank}.audit"):
            x = mpc.share(lambda: torch.ones(50), source=0, shape=(50,))
            mpc.reveal(x, to=[0, 1])

    mpc.run_local(one, observer=recorder)
    # Both had written when no frame was larger than an epoch's first; 50 words came after.
    assert seen == [128, 128] and {400} < {len(payload) for _, _, payload in recorder.frames}


def test_the_dealer_logs_nothing(tmp_path):
    def one(party):
        with mpc.World(party, audit=tmp_path / f"{party.rank}.audit", policy=Policy(())):
            pass

    mpc.run_local(one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.audit", "1.audit"]


def test_a_log_has_one_writer(tmp_path):
    with AuditLog.open(tmp_path / "log") as log:
        log.add("begin", {"epoch": "e"})
        with pytest.raises(LockedError):
            AuditLog.open(tmp_path / "log")
        assert len(read(tmp_path / "log").records) == 1
    AuditLog.open(tmp_path / "log").close()


def test_a_log_that_cannot_be_made_says_why(tmp_path):
    with pytest.raises(UsageError, match=r"audit: .*a/b/log: no such file or directory") as refused:
        AuditLog.open(tmp_path / "a" / "b" / "log")
    assert refused.value.hint == f"make the directory: mkdir -p {tmp_path / 'a' / 'b'}"
    with pytest.raises(UsageError, match="audit: "):
        AuditLog.open(tmp_path / "x" / ".." / "..")


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="is a symbolic link"):
        AuditLog.open(tmp_path / "log")


# What is done to a log afterwards


def test_every_changed_byte_is_found():
    data = written(1)
    for place in range(len(data) - 1):  # the last line's end is another test's
        if data[place : place + 1] == b"\n":
            continue
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises((TamperedError, FormatError)):
            verify(bytes(changed))


@pytest.mark.parametrize("change", ["taken out", "put in", "exchanged", "cut in the middle", "joined"])
def test_every_change_to_the_chain_is_found(change):
    lines = written(3).splitlines(keepends=True)
    changed = {
        "taken out": lines[:2] + lines[3:],
        "put in": lines[:2] + lines[1:],
        "exchanged": [lines[0], lines[2], lines[1], *lines[3:]],
        "cut in the middle": [lines[0], lines[1][:-40] + b"\n", *lines[2:]],
        "joined": [*lines[:2], lines[2][:-1], *lines[3:]],
    }[change]
    with pytest.raises(TamperedError, match=r"line [23]"):
        verify(b"".join(changed))


def test_the_first_records_cannot_be_left_out():
    with pytest.raises(TamperedError, match="line 1: does not follow the line before"):
        verify(b"".join(written().splitlines(keepends=True)[1:]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello\n", "line 1: is no record"),
        (b"[]\n", "line 1: is no record"),
        (b"\xff\n", "line 1: is no record"),
        (b'{"version": 2}\n', "line 1: version: got 2, wanted 1"),
        (b"{}\n", "line 1: version: got None"),
        (b"no line's end", "is no audit log"),
        (b"[" * 100000 + b"\n", "line 1: is no record"),
        (b"x" * (1 << 19), "is no audit log"),
    ],
)
def test_what_is_no_log_is_refused(data, message):
    with pytest.raises(FormatError, match=message):
        verify(data)


def test_a_record_that_a_crash_cut_is_told_apart_from_tampering():
    data = written(2)
    last = data.rindex(b"\n", 0, -1) + 1
    for size in range(last, len(data)):
        log = verify(data[:size])
        assert len(log.records) == 3 and log.cut == size - last
        storage = MemoryStorage(data[:size])
        AuditLog(storage, now=clock).add("begin", {"epoch": "e2"})
        kinds = [(record.kind, record.fields.get("cut")) for record in verify(bytes(storage.data)).records[3:]]
        assert kinds == ([("mended", log.cut)] if log.cut else []) + [("begin", None)]


def test_a_crash_at_any_step_loses_no_record_that_was_durable():
    """Whatever of the last writes reached the disk: the log opens, and holds all that `add` had returned for."""
    start = written(1)
    for stop in range(100):
        disk = FaultyStorage(start, stop_after=stop)
        added = 0
        try:
            log = AuditLog(disk, now=clock)
            for _ in range(3):
                log.add("reveal", {"epoch": "e2", "padding": "x" * 700})
                added += 1
        except PowerCutError:
            pass
        for state in disk.crash_states(20, random.Random(stop)):  # noqa: S311
            storage = MemoryStorage(state)
            AuditLog(storage, now=clock)
            records = verify(bytes(storage.data)).records
            assert 3 + added <= len(records) <= 3 + added + 2  # one more that landed whole, or that it was mended
        if added == 3:
            return
    pytest.fail("never came to the end")


# Two servers' logs


def test_two_logs_that_differ_say_where():
    p0, p1 = verify(written(party="P0")), verify(written(party="P1"))
    assert compare(p0, p1) == []
    assert compare(p0, verify(written(party="P0"))) == ["both are of P0: wanted one of P0 and one of P1"]
    assert compare(p0, verify(written(2, party="P1"))) == ["epoch e1: reveal 3 at predict.py:7: only P0 has it"]
    assert compare(p0, verify(written(party="P1", line=8)))[0] == (
        "epoch e1: reveal 1 at predict.py:7: P0 and P1 say other things of it"
    )
    shorter = verify(b"".join(written(party="P1").splitlines(keepends=True)[:-2]))
    assert compare(p0, shorter) == [
        "epoch e1: reveal 3 at predict.py:7: only P0 has it",
        "epoch e1: P1: the end is missing: a crash, one that still runs, or a log that was cut",
    ]
    assert compare(p0, verify(b"")) == ["epoch e1: only P0 has it"]


def test_a_rewritten_log_is_found_by_the_other_server_s():
    """Whoever can write the file can make a chain that holds; not one that the other server's log agrees with."""
    storage = MemoryStorage(b"")
    log = AuditLog(storage, now=clock)
    for record in verify(written(party="P1")).records:
        fields = dict(record.fields)
        for name in ("version", "kind", "time", "previous", "digest"):
            del fields[name]
        if record.kind == "reveal":
            fields["to"] = ["P1"]
        log.add(record.kind, fields)
    assert len(compare(verify(written()), verify(bytes(storage.data)))) == 3


def rewritten(path, change):
    """A log with its records changed and its chain made anew, as whoever runs the server can."""
    storage = MemoryStorage(b"")
    log = AuditLog(storage, now=clock)
    for record in read(path).records:
        fields = {name: value for name, value in record.fields.items() if name not in MADE_BY_THE_LOG}
        kind, fields = change(record.kind, fields)
        log.add(kind, fields)
    return verify(bytes(storage.data))


MADE_BY_THE_LOG = ("version", "kind", "time", "previous", "digest")


def three_reveals():
    x = mpc.share(lambda: torch.ones(3), source=0, shape=(3,))
    for to in (1, 0, 1):
        mpc.reveal(x * to, to=to)


def hidden(number, **changed):
    """Tell a reveal as refused; at the last one, end in an error too."""

    def change(kind, fields):
        if kind == "reveal" and fields["number"] == number:
            return "refused", fields | changed
        if kind == "end" and number == 3:
            return kind, fields | {"error": "refused", "reveals": 2}
        return kind, fields

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hidden(1), "reveal 1 at test_audit.py:.*P0 says that it was revealed, P1 that it was refused"),
        (hidden(1, to=["P0"]), "reveal 1 at .*P1 that something else was refused"),
        (hidden(3), "reveal 3 at .*P1 that it was refused"),
        (lambda kind, fields: (kind, fields | ({"reveals": 2} if kind == "end" else {})), r"P0 counts \[3\]"),
        (lambda kind, fields: (kind, fields | ({"program": "00"} if kind == "begin" else {})), "program: P0 has"),
    ],
    ids=["told as refused", "told as another", "the last one", "another count", "another program"],
)
def test_a_server_cannot_tell_a_reveal_as_refused(change, message, tmp_path):
    logged(tmp_path, three_reveals)
    honest = read(tmp_path / "P0.audit")
    assert compare(honest, read(tmp_path / "P1.audit")) == []
    found = compare(honest, rewritten(tmp_path / "P1.audit", change))
    assert len(found) == 1 and re.search(message, found[0]), found
    assert len(compare(rewritten(tmp_path / "P1.audit", change), honest)) == 1


def test_a_refusal_that_the_program_caught_is_an_end_in_error(tmp_path):
    def caught():
        with contextlib.suppress(MpcError):
            program()

    with pytest.raises(MpcError, match="the epoch has ended"):
        logged(tmp_path, caught, policy=[Policy((Allow("*", ("P1",)),)), None])
    logs = [read(tmp_path / name) for name in ("P0.audit", "P1.audit")]
    assert all("to public" in log.records[-1].fields["error"] for log in logs)
    assert compare(*logs) == []


# The command line


def test_the_verb_prints_reveals_and_compares(tmp_path, capsys):
    logged(tmp_path)
    assert main(["mpc", "audit", str(tmp_path / "P0.audit"), str(tmp_path / "P1.audit")]) == 0
    said = capsys.readouterr().out
    assert "clinic" in said and "public" in said and "test_audit.py:" in said and "both logs say the same" in said
    assert said.count("2 reveals in 1 epoch; the chain holds") == 2

    assert main(["mpc", "audit", "--json", str(tmp_path / "P0.audit")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["differences"] is None and len(result["logs"][0]["records"]) == 4


def test_the_verb_fails_where_logs_differ_or_were_changed(tmp_path, capsys):
    left, right = tmp_path / "P0.audit", tmp_path / "P1.audit"
    left.write_bytes(written(2))
    right.write_bytes(written(3, party="P1"))
    assert main(["mpc", "audit", str(left), str(right)]) == 81
    assert "only P1 has it" in capsys.readouterr().err
    assert main(["mpc", "audit", "--json", str(left), str(right)]) == 81
    assert json.loads(capsys.readouterr().out)["differences"] == ["epoch e1: reveal 3 at predict.py:7: only P1 has it"]
    right.write_bytes(b"".join(written(2, party="P1").splitlines(keepends=True)[:-1]))
    assert main(["mpc", "audit", str(left), str(right)]) == 81
    assert "say the same as far as they go; an end is missing" in capsys.readouterr().err.replace("\n", " ")
    right.write_bytes(written(3, party="P1")[:-10])
    assert main(["mpc", "audit", str(right)]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "the last record was cut by a crash" in said and "has no end" in said
    left.write_bytes(written(2).replace(b"clinic", b"clinik", 1))
    assert main(["mpc", "audit", str(left)]) == 23
    assert "line 2: was changed after it was written" in capsys.readouterr().err
    assert main(["mpc", "audit", str(tmp_path / "none")]) == 2


def test_names_in_a_log_do_not_steer_the_terminal(tmp_path, capsys):
    with AuditLog.open(tmp_path / "log") as log:
        fields = {"epoch": "e", "shape": [1], "owners": ["\x1b[31m[bold]"], "to": ["P0"], "file": "a\x07", "line": 1}
        log.add("reveal", fields)
    assert main(["mpc", "audit", str(tmp_path / "log")]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said and "[bold]" in said


def test_a_world_whose_log_is_broken_does_not_begin(tmp_path):
    (tmp_path / "P0.audit").write_bytes(b"{}\n")
    with pytest.raises((FormatError, MpcError)):
        logged(tmp_path)
    assert (tmp_path / "P0.audit").read_bytes() == b"{}\n"


def test_the_verb_needs_no_torch(tmp_path):
    (tmp_path / "log").write_bytes(written())
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from strongroom.cli.mpc.audit import read\n"
        "from pathlib import Path\n"
        "print(len(read(Path(sys.argv[1])).records))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "log"], capture_output=True, text=True, check=True
    )
    assert found.stdout == "5\n"
