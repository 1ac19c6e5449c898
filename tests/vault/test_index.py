"""The index of a vault that is authenticated only: contents without a key, or nothing."""

import json
import random

import pytest

from strongroom import vault
from strongroom.cli.main import main
from strongroom.errors import FormatError, TamperedError, TruncatedError, UsageError
from strongroom.sealed import NO_FRESHNESS
from strongroom.storage import LocalDirectory
from strongroom.vault.index import extract, make_index

KEY = bytes(range(32))
RANDOM = random.Random(5).randbytes  # noqa: S311
CONTENTS = {
    "small": b"small",
    "empty": b"",
    "sub/packed": RANDOM(5000),
    "sub/tree": RANDOM(70_001),
    "sub/holes": bytes(20_000) + RANDOM(5) + bytes(100_000),
}


@pytest.fixture
def published(tmp_path):
    """A vault with a history, so that its blocks lie in no order, and its index."""
    place = tmp_path / "v"
    with vault.open(place, "x", key=KEY, anchor=NO_FRESHNESS, encrypted=False) as opened:
        for path, content in CONTENTS.items():
            with opened.open(path, "xb", block_size=4096) as file:
                file.write(content if path != "sub/holes" else b"")
        with opened.open("sub/holes", "r+b") as file:
            file.truncate(120_005)
            file.write_at(20_000, CONTENTS["sub/holes"][20_000:20_005])
        opened.chmod("small", 0o755)
        opened.symlink("small", "link")
    with (
        vault.open(place, "r+", key=KEY, anchor=NO_FRESHNESS, encrypted=False) as opened,
        opened.open("sub/tree", "r+b") as file,
    ):
        file.write_at(8192, CONTENTS["sub/tree"][8192:16384])
    with vault.open(place, "r", key=KEY, anchor=NO_FRESHNESS) as opened:
        return place, make_index(opened)


def contents(top):
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_without_a_key_one_gets_what_was_indexed(published, tmp_path):
    place, index = published
    assert extract(index, LocalDirectory(place), tmp_path / "out") == sorted(CONTENTS)
    assert contents(tmp_path / "out") == CONTENTS
    assert (tmp_path / "out/small").stat().st_mode & 0o111 and not (tmp_path / "out/empty").stat().st_mode & 0o111
    parts = {each["path"]: each["parts"] for each in json.loads(index)["files"]}
    assert len(parts["sub/tree"]) > 1 and "" in [name for name, _, _ in parts["sub/holes"]]
    with pytest.raises(FileExistsError):
        extract(index, LocalDirectory(place), tmp_path / "out")


def test_an_index_of_some_bytes_fills_no_disk(tmp_path, monkeypatch):
    def index(*parts):
        one = {"path": "a", "executable": False, "blake3": "0" * 64, "parts": parts}
        return json.dumps({"format": "strongroom-index", "version": 1, "root": "x", "files": [one]}).encode()

    place = LocalDirectory(tmp_path)
    for parts in ([["", 0, 1 << 59]], [["", 0, 1 << 35]] * 3):
        with pytest.raises(FormatError, match="more than 64 GiB of zeros"):
            extract(index(*parts), place, tmp_path / "out")
    with pytest.raises(UsageError, match="and there is room for"):
        extract(index(*[["0" * 32, 0, 1 << 50]] * 5), place, tmp_path / "out")
    monkeypatch.setattr("strongroom.vault.index.MAX_ZEROS", 3 << 19)
    with vault.open(tmp_path / "v", "x", key=KEY, anchor=NO_FRESHNESS, encrypted=False) as opened:
        for path in ("a", "b"):
            opened.write_bytes(path, b"")
            with opened.open(path, "r+b") as file:
                file.truncate(1 << 20)
    with (
        vault.open(tmp_path / "v", "r", key=KEY, anchor=NO_FRESHNESS) as opened,
        pytest.raises(UsageError, match="of holes, which no index takes"),
    ):
        make_index(opened)


def test_a_hole_takes_no_room(tmp_path):
    with vault.open(tmp_path / "v", "x", key=KEY, anchor=NO_FRESHNESS, encrypted=False) as opened:
        opened.write_bytes("a", b"a")
        with opened.open("a", "r+b") as file:
            file.truncate(1 << 24)
    with vault.open(tmp_path / "v", "r", key=KEY, anchor=NO_FRESHNESS) as opened:
        index = make_index(opened)
    extract(index, LocalDirectory(tmp_path / "v"), tmp_path / "out")
    assert (tmp_path / "out/a").read_bytes() == b"a" + bytes((1 << 24) - 1)
    assert (tmp_path / "out/a").stat().st_blocks * 512 < 1 << 20


def test_what_was_changed_is_not_written(published, tmp_path):
    place, index = published
    for number, each in enumerate(json.loads(index)["files"]):
        for name, offset, length in each["parts"][:1]:
            if not name:
                continue
            data = (place / name).read_bytes()
            for changed, error in (
                (data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :], TamperedError),
                (data[: offset + length - 1], TruncatedError),
            ):
                (place / name).write_bytes(changed)
                out = tmp_path / f"out-{number}-{error.__name__}"
                with pytest.raises(error):
                    extract(index, LocalDirectory(place), out)
                assert not (out / each["path"]).exists()
            (place / name).unlink()
            with pytest.raises(TamperedError, match="is missing"):
                extract(index, LocalDirectory(place), tmp_path / f"out-{number}-gone")
            (place / name).write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../out"},
        {"path": "/etc/x"},
        {"path": "a//b"},
        {"path": "small"},
        {"path": "small/x"},
        {"path": 1},
        {"blake3": "0"},
        {"executable": 1},
        {"parts": [["meta", 0, 1]]},
        {"parts": [["../../etc/passwd", 0, 1]]},
        {"parts": [["0" * 32, -1, 1]]},
        {"parts": [["0" * 32, 0, 1 << 61]]},
        {"parts": [["0" * 32, 0]]},
        {"parts": [["0" * 32, 0, True]]},
    ],
    ids=str,
)
def test_what_no_index_says(change, published, tmp_path):
    place, index = published
    document = json.loads(index)
    document["files"].append({"path": "more", "executable": False, "blake3": "0" * 64, "parts": []} | change)
    with pytest.raises(FormatError, match="index"):
        extract(json.dumps(document).encode(), LocalDirectory(place), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"format":"strongroom-index","version":2,"files":[]}', b"[" * 10_000]
)
def test_what_is_no_index(raw, published, tmp_path):
    with pytest.raises(FormatError, match="index"):
        extract(raw, LocalDirectory(published[0]), tmp_path / "out")


def test_of_an_encrypted_vault_there_is_none(tmp_path):
    with vault.open(tmp_path / "v", "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.write_bytes("a", b"a")
    with (
        vault.open(tmp_path / "v", "r", key=KEY, anchor=NO_FRESHNESS) as opened,
        pytest.raises(UsageError, match="is encrypted"),
    ):
        make_index(opened)


def test_the_verbs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_bytes(b"public" * 1000)
    assert main(["seal", "--authenticated", "src", "v.vault"]) == 0
    assert "anybody" in capsys.readouterr().err
    assert main(["vault", "info", "v.vault"]) == 0
    assert "authenticated only" in capsys.readouterr().out
    assert main(["vault", "index", "v.vault"]) == 0
    (tmp_path / "index").write_text(capsys.readouterr().out)
    (tmp_path / "v.vault.key").rename("away")
    assert main(["unseal", "--index", "index", "v.vault", "out"]) == 0
    assert contents(tmp_path / "out") == {"a": b"public" * 1000}
    assert "nothing of whether there are newer ones" in capsys.readouterr().err
    assert main(["unseal", "--index", "index", "--key", "away", "v.vault", "again"]) == UsageError.exit_code
    # Who writes says that anybody may read it, and takes it away again without.
    (tmp_path / "away").rename("v.vault.key")
    (tmp_path / "more").write_text("more")
    assert main(["vault", "cp", "more", "v.vault:more"]) == FormatError.exit_code
    assert "--authenticated" in capsys.readouterr().err
    assert main(["vault", "pack", "more", "v.vault"]) == FormatError.exit_code
    assert main(["vault", "cp", "--authenticated", "more", "v.vault:more"]) == 0
    assert main(["vault", "rm", "v.vault:a"]) == main(["vault", "compact", "v.vault"]) == 0
    capsys.readouterr()
    assert main(["vault", "ls", "v.vault"]) == 0
    assert capsys.readouterr().out == "more\n"
    assert main(["seal", "src", "e.vault"]) == 0
    assert main(["vault", "cp", "--authenticated", "more", "e.vault:more"]) == FormatError.exit_code


def test_a_run_without_a_policy_takes_no_such_vault(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    (tmp_path / "a").write_text("a")
    (tmp_path / "job.py").write_text("")
    assert main(["seal", "--authenticated", "a", "v.vault"]) == main(["seal", "a", "d.vault"]) == 0
    for vaults in (["--data", "v.vault", "--out", "new"], ["--data", "d.vault", "--out", "v.vault"]):
        assert main(["run", *vaults, "--", "python", "job.py"]) == UsageError.exit_code
        told = capsys.readouterr().err
        assert "v.vault is authenticated only" in told and 'rule = "authenticated"' in told
