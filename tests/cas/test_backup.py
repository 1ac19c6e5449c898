"""Backups: of one moment, whatever runs; restored whole and verified, or not at all."""

from __future__ import annotations

import io
import json
import sqlite3
import stat
import tarfile

import pytest

from strongroom.cas.service.backup import back_up, restore
from strongroom.cas.state.store import Store
from strongroom.cli.main import main
from strongroom.errors import ConflictError, FormatError, IntegrityError, RollbackError, StrongroomError, UsageError
from tests.cas.world import TOKEN, cas_in, world_in


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a CAS's directory, a backup of it while it ran, the log's head then)."""
    base = tmp_path_factory.mktemp("backup")
    with cas_in(base) as cas, world_in(cas) as world:
        file = base / "backup.tar"
        done = back_up(cas.directory, file)
        head = world.client._heads.read()
        assert done.entries == head.size
        world.client.put_secret(world.name, "token", b"later")
        return world.name, cas.directory, file, head


def contents(file):
    with tarfile.open(file) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def pack(file, files):
    with tarfile.open(file, "w") as tar:
        for name, content in files.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def test_a_backup_of_a_running_cas_is_restored_as_it_was(made, tmp_path):
    name, directory, file, head = made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    done = restore(file, tmp_path / "restored")
    assert (done.head, done.plain, done.verified) == (head, True, True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "restored").iterdir()}
    assert {"cas.sqlite", "master.key", "root.key", "unseal.json"} <= set(modes)
    assert set(modes.values()) == {0o600}
    store = Store(tmp_path / "restored")
    assert store.head() == head
    assert store.secret(name, "token") == TOKEN
    later = Store(directory)
    with pytest.raises(RollbackError, match="rolled back"):  # what those who have seen more say to it
        store.check_head(later.head())
    later.close()
    store.close()


def test_a_restored_cas_has_its_name_and_serves(made, tmp_path):
    _, _, file, head = made
    restore(file, tmp_path / "cas")
    with cas_in(tmp_path) as cas:
        assert cas.address.cas_root == json.loads((made[1] / "cas.json").read_text())["cas_root"]
        with world_in(cas) as world:
            assert world.client._heads.read().size > head.size


def test_nothing_is_overwritten(made, tmp_path):
    _, directory, file, _ = made
    with pytest.raises(UsageError, match="exists already"):
        back_up(directory, file)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        restore(file, tmp_path / "kept")
    with pytest.raises(UsageError, match="holds no CAS"):
        back_up(tmp_path / "kept", tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE secrets SET box = CAST(substr(box, 1, 24) || zeroblob(40) AS BLOB) WHERE name = 'token'",
        "DELETE FROM secrets WHERE name = 'token'",
        "UPDATE log SET detail = '{}' WHERE number = 2",
        "DELETE FROM nodes WHERE level = 1",
        "DELETE FROM head",
    ],
)
def test_a_changed_backup_is_not_restored(made, tmp_path, statement):
    files = contents(made[2])
    (tmp_path / "db").write_bytes(files["cas.sqlite"])
    with sqlite3.connect(tmp_path / "db") as db:
        assert db.execute(statement).rowcount > 0
    db.close()
    changed = pack(tmp_path / "changed", files | {"cas.sqlite": (tmp_path / "db").read_bytes()})
    with pytest.raises(IntegrityError):
        restore(changed, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_a_backup_without_the_root_secret_has_its_log_looked_through(made, tmp_path):
    files = contents(made[2])
    files["unseal.json"] = json.dumps(json.loads(files["unseal.json"]) | {"unseal": "tpm"}).encode()
    del files["master.key"]
    done = restore(pack(tmp_path / "sealed", files), tmp_path / "restored")
    assert (done.entries, done.plain, done.verified) == (made[3].size, False, False)
    (tmp_path / "db").write_bytes(files["cas.sqlite"])
    for statement in ("UPDATE log SET time = 0 WHERE number = 3", "DELETE FROM log WHERE number = 2"):
        with sqlite3.connect(tmp_path / "db") as db:
            db.execute(statement)
        db.close()
        changed = pack(tmp_path / "changed", files | {"cas.sqlite": (tmp_path / "db").read_bytes()})
        with pytest.raises(IntegrityError, match="log"):
            restore(changed, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def _entry(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "extra",
    [
        "../master.key",
        "/tmp/master.key",
        "x/master.key",
        "cas.json",
        "cas.sqlite-wal",
        ".master.key",
        "master.key\n",
        _entry("other.key", tarfile.SYMTYPE),
        _entry("other.key", tarfile.LNKTYPE),
        _entry("other.key", tarfile.FIFOTYPE),
    ],
    ids=lambda extra: repr(getattr(extra, "type", extra)),
)
def test_a_backup_with_anything_else_in_it_is_refused(made, tmp_path, extra):
    content = b"" if isinstance(extra, tarfile.TarInfo) else b"x"
    hostile = pack(tmp_path / "hostile", contents(made[2]) | {extra: content})
    with pytest.raises(FormatError, match="not a backup"):
        restore(hostile, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_what_was_cut_off_or_is_something_else_is_refused(made, tmp_path):
    whole = made[2].read_bytes()
    for at in (0, 1, 511, 512, 1000, 1024, len(whole) // 2, len(whole) - 20_000):
        (tmp_path / "cut").write_bytes(whole[:at])
        with pytest.raises(StrongroomError):
            restore(tmp_path / "cut", tmp_path / "restored")
    files = contents(made[2])
    for about in (b"", b"[]", b'{"format": "strongroom-cas-backup-2"}'):
        with pytest.raises(FormatError, match="its format is not"):
            restore(pack(tmp_path / "other", files | {"backup.json": about}), tmp_path / "restored")
    with pytest.raises(UsageError, match="does not exist"):
        restore(tmp_path / "none", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_between_sqlite_and_postgresql(made, postgres, tmp_path):
    name, _, file, head = made
    url = postgres.schema()
    restore(file, tmp_path / "shared", database=url)
    assert not list((tmp_path / "shared").glob("cas.sqlite*"))
    store = Store(tmp_path / "shared", database=url)
    assert store.head() == head
    store.put_secret(name, "token", b"new", now=1)
    done = back_up(tmp_path / "shared", tmp_path / "again.tar", database=url)
    assert done.entries == head.size + 1
    restore(tmp_path / "again.tar", tmp_path / "back")
    back = Store(tmp_path / "back")
    assert back.head() == store.head()
    assert back.secret(name, "token") == b"new"
    with pytest.raises(ConflictError, match="has tables of a CAS already"):
        restore(file, tmp_path / "over", database=url)
    assert not (tmp_path / "over").exists()
    back.close()
    store.close()


def test_the_command_line_says_what_a_backup_is(made, tmp_path, capsys):
    _, directory, _, _ = made
    file = tmp_path / "b.tar"
    assert main(["cas", "backup", str(file), "--state", str(directory)]) == 0
    assert "holds master.key in plain" in capsys.readouterr().err
    assert main(["cas", "restore", str(file), "--state", str(tmp_path / "new"), "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["verified"] is True
    assert "will call this a rollback" in out.err
    assert main(["cas", "restore", str(file), "--state", str(tmp_path / "new")]) == 2
    assert "is not empty" in capsys.readouterr().err
