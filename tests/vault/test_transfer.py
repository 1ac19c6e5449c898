"""Packing and unpacking: what is kept, what is refused, and that nothing is ever written outside of the destination."""

import os
import shutil
import socket
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom import vault
from strongroom.errors import UsageError
from strongroom.sealed import NO_FRESHNESS
from strongroom.storage import MemoryDirectory
from strongroom.vault.transfer import leads_out, walk_vault

KEY = bytes(range(32))

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX file types")


def packed(top, **options):
    directory = MemoryDirectory()
    with vault.open(directory, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        vault.pack(top, opened, **options)
    return vault.open(directory, "r+", key=KEY, anchor=NO_FRESHNESS)


def shape(top):
    """Everything below a directory: kind, bits, times, content."""
    found = {}
    for path in top.rglob("*"):
        status = path.lstat()
        content = b""
        if path.is_symlink():
            content = bytes(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        bits = 0 if path.is_symlink() else stat.S_IMODE(status.st_mode)
        found[path.relative_to(top)] = (stat.S_IFMT(status.st_mode), bits, status.st_mtime_ns, content)
    return found


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "in"
    (top / "a" / "b").mkdir(parents=True)
    (top / "empty").mkdir(mode=0o750)
    (top / "a" / "b" / "data").write_bytes(b"x" * 200_000)
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o755)
    (top / "private").write_bytes(b"")
    (top / "private").chmod(0o600)
    (top / "latest").symlink_to("a/b/data")
    (top / "a" / "up").symlink_to("../a/b/../../run.sh")
    (top / "a" / "nowhere").symlink_to("not there")
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18, 10**18 + number * 1_000_000_007), follow_symlinks=False)
    (top / "a" / "b").chmod(0o555)
    yield top
    (top / "a" / "b").chmod(0o755)


def test_a_destination_that_exists_keeps_its_permission_bits(tree, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o755)
    with packed(tree) as opened:
        vault.unpack(opened, tmp_path / "out")
        vault.unpack(opened, tmp_path / "new")
    assert shape(tmp_path / "out") == shape(tree)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out", "new")] == [0o755, 0o700]


def test_everything_comes_back_as_it_was(tree, tmp_path):
    with packed(tree) as opened:
        names = vault.unpack(opened, tmp_path / "out")
        assert names == ["a/b/data", "a/nowhere", "a/up", "latest", "private", "run.sh"]
    assert shape(tmp_path / "out") == shape(tree)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    (tmp_path / "out" / "a" / "b").chmod(0o755)


def test_pack_says_what_it_packed_and_how_far_it_is(tree):
    seen = []
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        names = vault.pack(tree, opened, into="runs/7", progress=lambda path, count: seen.append((path, count)))
        assert names[0] == "runs/7/a/b/data"
        assert opened.read_bytes("runs/7/latest") == b"x" * 200_000
    assert sorted(seen) == [("runs/7/a/b/data", 200_000), ("runs/7/run.sh", 10)]


def test_pack_again_replaces_links_and_files_and_keeps_the_rest(tree, tmp_path):
    with packed(tree) as opened:
        opened.write_bytes("mine", b"stays")
        (tree / "latest").unlink()
        (tree / "latest").symlink_to("run.sh")
        vault.pack(tree, opened)
        assert opened.readlink("latest") == "run.sh"
        assert opened.read_bytes("mine") == b"stays"
        (tree / "latest").unlink()
        (tree / "latest").write_text("a file now")
        vault.pack(tree, opened)
        assert opened.read_bytes("latest") == b"a file now"
        assert opened.read_bytes("run.sh") == b"#!/bin/sh\n"


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../x", "a/../../x", "back/../x", "deep/er/out/../../x"])
def test_links_that_lead_out_are_refused_by_both(target, tmp_path):
    top = tmp_path / "in"
    (top / "a").mkdir(parents=True)
    (top / "deep" / "er").mkdir(parents=True)
    (top / "deep" / "er" / "out").symlink_to("../..")  # the top, for which `..` of a path is not that of its text
    (top / "a" / "back").symlink_to("..")
    (top / "a" / "first").write_text("content")
    (top / "bad").symlink_to(target)
    (top / "back").symlink_to("a/back")
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        with pytest.raises(UsageError, match="bad: is a symbolic link that leads out") as caught:
            vault.pack(top, opened)
        assert "--follow-links" in caught.value.hint
        assert opened.listdir() == []
        for name in ("a", "deep/er"):
            opened.mkdir(name)
        opened.symlink("../..", "deep/er/out")
        opened.symlink("..", "a/back")
        opened.symlink("a/back", "back")
        opened.symlink(target, "bad")
        with pytest.raises(UsageError, match="bad: is a symbolic link that leads out"):
            vault.unpack(opened, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        vault.unpack(opened, tmp_path / "out", outside_links=True)
        assert str((tmp_path / "out" / "bad").readlink()) == target


def test_links_that_go_round_lead_nowhere(tmp_path):
    assert not leads_out("a", {"a": "b", "b": "a"})
    assert not leads_out("a", {"a": "a"})
    assert not leads_out("d/a", {"d/a": "../d/./x//y"})
    assert leads_out("a", {"a": "b", "b": "../x"})


@given(
    st.dictionaries(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join),
        st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=5).map("/".join),
        max_size=6,
    )
)
def test_what_the_system_resolves_out_of_the_tree_is_seen(tmp_path_factory, links):
    """Whatever links a tree has: one that is not said to lead out leads nowhere, or to a place within."""
    links = {
        path: target
        for path, target in links.items()
        if not any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in links)
    }
    top = tmp_path_factory.mktemp("links") / "x" / "y" / "z" / "u" / "v" / "top"
    for path in links:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
    top.mkdir(parents=True, exist_ok=True)
    for path, target in links.items():
        (top / path).symlink_to(target)
    for path in links:
        try:
            found = (top / path).resolve(strict=True)
        except (OSError, RuntimeError):
            continue
        if not found.is_relative_to(top):
            assert leads_out(path, links)
    shutil.rmtree(top.parents[4])


def test_follow_puts_what_links_lead_to_in_their_place(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "blob").write_bytes(b"blob")
    (tree / "a" / "nowhere").unlink()
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "blob").symlink_to(tmp_path / "elsewhere" / "blob")
    with packed(tree, follow=True) as opened:
        assert opened.read_bytes("linked/blob") == b"blob"
        assert opened.read_bytes("blob") == b"blob"
        assert not any(inode.is_link for _, inode in walk_vault(opened, 1))
    (tree / "round").symlink_to(tree)
    with pytest.raises(UsageError, match="round: is a symbolic link to a directory above itself"):
        packed(tree, follow=True)
    (tree / "round").unlink()
    (tree / "dangling").symlink_to("not there")
    with pytest.raises(UsageError, match="dangling: is a symbolic link that leads nowhere"):
        packed(tree, follow=True)


def test_a_link_is_not_packed_by_itself(tree):
    with pytest.raises(UsageError, match="latest: is a symbolic link"):
        packed(tree / "latest")
    with packed(tree / "latest", follow=True) as opened:
        assert opened.read_bytes("latest") == b"x" * 200_000


def test_pipes_are_refused_before_anything_is_packed(tree):
    os.mkfifo(tree / "z-pipe")
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        with pytest.raises(UsageError, match="z-pipe: is no regular file, directory or symbolic link"):
            vault.pack(tree, opened)
        assert opened.listdir() == []


def test_pipes_and_sockets_of_a_mount_are_passed_over(tmp_path):
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.make_at(1, b"pipe", stat.S_IFIFO | 0o600, uid=0, gid=0)
        opened.make_at(1, b"socket", stat.S_IFSOCK | 0o600, uid=0, gid=0)
        opened.write_bytes("file", b"1")
        assert vault.unpack(opened, tmp_path / "out") == ["file"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["file"]


def test_unpacking_sets_no_ids(tmp_path):
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.write_bytes("tool", b"#!/bin/sh\n", permissions=0o6755)
        opened.mkdir("shared", permissions=0o2777)
        vault.unpack(opened, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out" / "tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out" / "shared").stat().st_mode) == 0o777


def test_names_that_are_no_text_come_back(tmp_path):
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        made = opened.make_at(1, b"caf\xe9", stat.S_IFREG | 0o644, uid=0, gid=0)
        node = opened.hold(made.id)
        node.write_at(0, b"latin")
        opened.release(node)
        assert opened.read_bytes(opened.listdir()[0]) == b"latin"
        vault.unpack(opened, tmp_path / "out")
    assert (tmp_path / "out" / os.fsdecode(b"caf\xe9")).read_bytes() == b"latin"


def test_unpack_a_part(tree, tmp_path):
    with packed(tree) as opened:
        assert vault.unpack(opened, tmp_path / "out", "a/b") == ["data"]
        with pytest.raises(UsageError, match="up: is a symbolic link that leads out"):
            vault.unpack(opened, tmp_path / "out-2", "a")  # to what is not in this part
        with pytest.raises(NotADirectoryError):
            vault.unpack(opened, tmp_path / "out-3", "run.sh")
        with pytest.raises(FileNotFoundError):
            vault.unpack(opened, tmp_path / "out-3", "x")


def test_unpack_overwrites_nothing(tree, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "latest").symlink_to("/etc/passwd")
    with packed(tree) as opened, pytest.raises(FileExistsError, match="overwrites nothing"):
        vault.unpack(opened, tmp_path / "out")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_put_takes_regular_files_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as opened:
            for name in ("socket", "."):
                with pytest.raises(UsageError, match="is no regular file"):
                    vault.put(tmp_path / name, opened, "x")
