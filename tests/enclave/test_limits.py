"""Control groups: on trees that act like the kernel's as far as a file system can, and on the kernel's own."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.enclave import limits
from strongroom.enclave.limits import Group, Limits, make_group, places

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")

BOTH = Limits(memory=1 << 30, cpus=1.5)
FILES = {
    "memory": {"memory.max": "max", "memory.swap.max": "max", "memory.events": "oom 0\noom_kill 0\n"},
    "cpu": {"cpu.max": "max 100000"},
}


class Tree:
    """Control groups of version 2 below a directory, and a process's view of them."""

    def __init__(self, root, monkeypatch):
        self.top, self.proc = root / "cgroup", root / "proc"
        self.proc.mkdir()
        real_mkdir, real_rmdir = Path.mkdir, Path.rmdir

        def mkdir(path, *arguments, **options):
            real_mkdir(path, *arguments, **options)
            if path.is_relative_to(self.top):
                self.fill(path)

        def rmdir(path):
            if path.is_relative_to(self.top):
                for file in path.iterdir():
                    file.unlink()
            real_rmdir(path)

        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rmdir", rmdir)
        self.top.mkdir()
        (self.proc / "mounts").write_text(f"cgroup2 {self.top} cgroup2 rw,nsdelegate 0 0\n")

    def fill(self, group):
        """The files that the kernel makes with a group: those of the controllers that its parent gives out."""
        words = (group.parent / "cgroup.subtree_control").read_text().split() if group != self.top else FILES
        given = [word.lstrip("+") for word in words]
        files = {"cgroup.procs": "", "cgroup.subtree_control": "", "cgroup.controllers": " ".join(given)}
        for controller in given:
            files |= FILES[controller]
        for name, content in files.items():
            (group / name).write_text(content)

    def give(self, path, controllers, processes=()):
        """A group that gives out these controllers."""
        at = self.top
        for part in Path(path).parts:
            at = at / part
            if not at.exists():
                at.mkdir()
        (at / "cgroup.subtree_control").write_text(controllers)
        (at / "cgroup.procs").write_text("".join(f"{process}\n" for process in processes))
        return at

    def stand(self, path):
        """Where the launcher is."""
        (self.proc / "cgroup").write_text(f"0::/{path}\n")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    return Tree(tmp_path, monkeypatch)


def test_one_group_has_all_limits_since_a_process_is_in_one_only(tree):
    tree.give("", "cpu memory")
    tree.give("user.slice", "cpu memory")
    tree.give("user.slice/near.slice", "memory")
    tree.give("user.slice/near.slice/own.scope", "", [os.getpid()])
    tree.stand("user.slice/near.slice/own.scope")
    group = make_group(BOTH, tree.proc)
    [directory] = group.directories
    assert directory.parent == tree.top / "user.slice"  # the nearest that gives out both
    assert (directory / "memory.max").read_text().startswith(str(1 << 30))
    assert (directory / "memory.swap.max").read_text().startswith("0")
    assert (directory / "cpu.max").read_text() == "150000 100000"
    assert (group.data, group.processors, group.notes) == (None, frozenset(), ())
    assert places(["memory", "cpu"], tree.proc) == dict.fromkeys(("memory", "cpu"), ("2", tree.top / "user.slice"))
    assert not group.out_of_memory
    (directory / "memory.events").write_text("oom 1\noom_kill 1\n")
    assert group.out_of_memory
    group.close()
    assert not directory.exists()


def test_what_no_ancestor_gives_out_is_limited_otherwise(tree):
    tree.give("a", "memory")
    tree.give("a/own", "", [os.getpid()])
    tree.stand("a/own")
    group = make_group(BOTH, tree.proc)
    assert [each.parent for each in group.directories] == [tree.top / "a"]
    assert (group.data, len(group.processors)) == (None, min(2, len(os.sched_getaffinity(0))))
    assert ["processors" in note for note in group.notes] == [True]
    group.close()


def delegate(group):
    try:
        os.setxattr(group, "user.delegate", b"1")
    except OSError:
        pytest.skip("this file system has no attributes")


def test_in_a_delegated_unit_the_launcher_steps_aside(tree):
    own = tree.give("user@1.service/run.scope", "", [os.getpid()])
    (own / "cgroup.controllers").write_text("cpu memory pids")
    delegate(own)
    tree.stand("user@1.service/run.scope")
    group = make_group(BOTH, tree.proc)
    leaf = own / f"strongroom-{os.getpid()}-launcher"
    assert (leaf / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert [each.parent for each in group.directories] == [own]
    assert group.notes == ()
    group.close()


def test_others_are_not_moved(tree):
    own = tree.give("user@1.service/run.scope", "", [os.getpid(), 1])
    (own / "cgroup.controllers").write_text("cpu memory")
    delegate(own)
    tree.stand("user@1.service/run.scope")
    group = make_group(BOTH, tree.proc)
    assert group.directories == ()
    assert len(group.notes) == 2
    assert (own / "cgroup.subtree_control").read_text() == ""


def test_a_group_that_no_process_can_enter_is_none(tree, monkeypatch):
    tree.give("", "cpu memory")
    tree.give("own", "", [os.getpid()])
    tree.stand("own")
    fill = tree.fill

    def closed(group):
        fill(group)
        (group / "cgroup.procs").unlink()
        (group / "cgroup.procs").symlink_to("/nowhere/at/all")  # as a common ancestor that is not this user's

    monkeypatch.setattr(tree, "fill", closed)
    group = make_group(BOTH, tree.proc)
    assert (group.directories, group.data) == ((), 1 << 20)
    assert [each.name for each in tree.top.iterdir() if each.is_dir()] == ["own"]


def test_both_versions_at_once(tree):
    first = tree.top.with_name("memory")
    (first / "mine").mkdir(parents=True)
    tree.give("", "cpu")
    (tree.proc / "cgroup").write_text("4:memory:/mine\n0::/gone\n")
    with (tree.proc / "mounts").open("a") as mounts:
        mounts.write(f"cgroup {first} cgroup rw,memory 0 0\n")
    assert places(["memory"], tree.proc) == {}  # a directory without a door
    group = make_group(BOTH, tree.proc)
    assert [each.parent for each in group.directories] == [tree.top]
    assert group.data == 1 << 20
    group.close()


def kernels():
    """Where the kernel's own tree of version 2 is mounted, and a controller that it has to give out, if any."""
    for kind, top, _ in limits._mounts(Path("/proc/self")):
        if kind == "cgroup2" and os.access(top, os.W_OK):
            files = {"hugetlb": "hugetlb.2MB.max", "pids": "pids.max", "memory": "memory.max"}
            for name in limits._words(top / "cgroup.controllers") & set(files):
                return top, name, files[name]
    return None


LAUNCHER = """
import subprocess, sys, types
from pathlib import Path
controller, file = sys.argv[1:]
limits = types.ModuleType("limits")
sys.modules["limits"] = limits
exec(sys.stdin.read(), limits.__dict__)
found, has = limits._group_of_all({controller: [(file, "4096")]}, Path("/proc/self"))
if found is None: sys.exit("none")
group = limits.Group((found,))
show = group.entered(["/bin/sh", "-c", "cat /proc/self/cgroup; exec cat " + str(found / file)])
print(*has, subprocess.run(show, capture_output=True, text=True, check=True).stdout, sep="\\n")
group.close()
print(found, found.exists())
"""


@pytest.fixture
def unit():
    """A group in the kernel's tree that gives nothing out yet, and how a launcher of another user is run in it."""
    found = kernels() if os.geteuid() == 0 else None
    if found is None:
        pytest.skip("takes root, and a controller of version 2 of control groups")
    top, controller, file = found
    given = controller in limits._words(top / "cgroup.subtree_control")
    if not given:
        limits._tell(top / "cgroup.subtree_control", f"+{controller}")
    unit = top / f"test-{os.getpid()}.scope"
    unit.mkdir()
    user = 4242

    def own(group):
        for path in (group, *(group / f"cgroup.{name}" for name in ("procs", "threads", "subtree_control"))):
            os.chown(path, user, user)

    def launched(group):
        become = f"setpriv --reuid {user} --regid {user} --clear-groups /usr/bin/python3 -I -c"
        enter = f'echo $$ > {group}/cgroup.procs; exec {become} "$@"'
        return subprocess.run(
            ["/bin/sh", "-c", enter, "sh", LAUNCHER, controller, file],
            input=inspect.getsource(limits),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    yield unit, controller, own, launched
    for group in sorted(unit.rglob("*"), reverse=True):
        if group.is_dir():
            group.rmdir()
    unit.rmdir()
    if not given:
        limits._tell(top / "cgroup.subtree_control", f"-{controller}")


def test_a_plain_user_in_a_delegated_unit_of_the_kernels(unit):
    group, controller, own, launched = unit
    own(group)
    os.setxattr(group, "trusted.delegate", b"1")
    os.setxattr(group, "user.delegate", b"1")
    done = launched(group)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[0] == controller
    assert any(line.startswith(f"0::/{group.name}/strongroom-") for line in lines)
    assert lines[-2].startswith(f"{group}/strongroom-")
    assert lines[-1] == "False"
    assert (group / "cgroup.subtree_control").read_text().split() == [controller]


def test_a_plain_user_beside_its_own_group_of_the_kernels(unit):
    """As in a user manager of systemd's: the slice that gives out is the user's, with no processes of its own."""
    group, controller, own, launched = unit
    limits._tell(group / "cgroup.subtree_control", f"+{controller}")
    inner = group / "run.scope"
    inner.mkdir()
    own(group)
    own(inner)
    done = launched(inner)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2].startswith(f"{group}/strongroom-")


def test_a_plain_user_without_delegation_gets_none_of_the_kernels(unit):
    group, controller, _, launched = unit
    assert launched(group).stderr.strip() == "none"
    limits._tell(group / "cgroup.subtree_control", f"+{controller}")
    (group / "run.scope").mkdir()
    assert launched(group / "run.scope").stderr.strip() == "none"


def test_a_group_enters_before_it_becomes_the_command():
    assert Group(data=4096).entered(["/bin/sh", "-c", "ulimit -d"])[-3:] == ["/bin/sh", "-c", "ulimit -d"]
    run = subprocess.run(Group(data=4096).entered(["/bin/sh", "-c", "ulimit -d"]), capture_output=True, check=True)
    assert run.stdout == b"4096\n"
