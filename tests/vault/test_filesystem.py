"""``sealed://`` as programs meet it through fsspec."""

import json
import multiprocessing
import pickle
import re
from pathlib import Path

import pytest

from strongroom import vault
from strongroom.errors import ConflictError, RollbackError, UsageError, WrongKeyError
from strongroom.sealed import NO_FRESHNESS, FileAnchor, MemoryAnchor, create_key
from strongroom.storage import MemoryDirectory

fsspec = pytest.importorskip("fsspec")

from strongroom.vault.filesystem import SealedFileSystem  # noqa: E402

KEY = bytes(range(32))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a vault, made through fsspec; its options."""
    monkeypatch.chdir(tmp_path)
    create_key("v.key")
    options = {"vault": "v", "key_file": "v.key", "anchor": "v.anchor"}
    fs = SealedFileSystem(**options, mode="x")
    fs.pipe({"train/x": b"x" * 100_000, "train/y": b"y", "notes": b"line 1\nline 2\n"})
    fs.close()
    return options


@pytest.fixture
def fs(place):
    fs = SealedFileSystem(**place)
    yield fs
    fs.close()


def commits(place):
    return FileAnchor(place["anchor"]).read().sequence


def kept(place):
    with vault.open(place["vault"], key=vault_key(place), anchor=FileAnchor(place["anchor"])) as opened:
        return {path: opened.read_bytes(path) for path in opened.files()}


def vault_key(place):
    from strongroom.sealed import load_key

    return load_key(place["key_file"])


# Looking.


def test_listing(fs):
    assert fs.ls("", detail=False) == ["notes", "train"]
    assert fs.ls("sealed://train/", detail=False) == ["train/x", "train/y"]
    assert [(e["name"], e["type"], e["size"]) for e in fs.ls("train")] == [
        ("train/x", "file", 100_000),
        ("train/y", "file", 1),
    ]
    assert fs.ls("notes", detail=False) == ["notes"]
    assert fs.find("") == ["notes", "train/x", "train/y"]
    assert fs.glob("tr*/[xz]") == ["train/x"]
    assert list(fs.walk("")) == [("", ["train"], ["notes"]), ("train", [], ["x", "y"])]
    assert fs.du("") == 100_015
    assert (fs.isdir("train"), fs.isfile("train"), fs.isdir(""), fs.isfile("notes")) == (True, False, True, True)
    assert not fs.exists("train/z")
    for look in (fs.info, fs.ls, fs.open):
        with pytest.raises(FileNotFoundError):
            look("train/z")


def test_times(fs):
    before = fs.modified("notes")
    assert before == fs.created("notes") or before < fs.created("notes")
    fs.touch("notes", truncate=False)
    assert fs.modified("notes") >= before
    assert fs.cat("notes") == b"line 1\nline 2\n"
    fs.touch("notes")
    fs.touch("new/empty")
    assert fs.cat(["notes", "new/empty"]) == {"notes": b"", "new/empty": b""}


def test_links_are_followed(fs, place):
    with vault.open(place["vault"], "r+", key=vault_key(place), anchor=FileAnchor(place["anchor"])) as opened:
        opened.symlink("train/x", "link")
        opened.symlink("nowhere", "dangling")
        opened.symlink("train", "folder")
    fs.refresh()
    assert fs.info("link") | {"name": 0} == fs.info("train/x") | {"name": 0, "islink": True}
    assert fs.cat("folder/y") == b"y"
    assert fs.isdir("folder")
    assert fs.info("dangling")["type"] == "link"


def test_reading(fs):
    assert fs.cat_file("notes", 2, 6) == b"ne 1"
    assert fs.cat_file("notes", -7) == b"line 2\n"
    assert fs.cat_file("notes", 0, -8) == b"line 1"
    assert fs.cat_ranges(["notes", "train/y"], [0, 0], [4, 1]) == [b"line", b"y"]
    assert fs.head("notes", 4) == b"line"
    assert fs.tail("notes", 4) == b"e 2\n"
    with fs.open("notes", "r") as text:
        assert list(text) == ["line 1\n", "line 2\n"]
    with fs.open("notes") as file:
        assert file.readline() == b"line 1\n"
        assert file.tell() == 7
        assert list(file) == [b"line 2\n"]
        assert (file.size, file.mode, file.seekable(), file.writable()) == (14, "rb", True, False)
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_a_reader_keeps_its_version_until_it_refreshes(fs, place):
    assert fs.cat("notes").startswith(b"line")
    other = SealedFileSystem(**place)
    other.pipe("notes", b"new")
    assert fs.cat("notes").startswith(b"line")
    fs.refresh()
    assert fs.cat("notes") == b"new"


# Writing: what is a commit.


def test_closing_a_file_commits(fs, place):
    before = commits(place)
    with fs.open("a/b/c", "wb") as file:
        file.write(b"1")
        assert commits(place) == before
        assert not fs.exists("a/b/c")
    assert commits(place) == before + 1
    assert kept(place)["a/b/c"] == b"1"
    with fs.open("a/b/c", "ab") as file:
        file.write(b"2")
    with fs.open("a/b/c", "r+b") as file:
        file.write(b"0")
    assert kept(place)["a/b/c"] == b"02"
    assert commits(place) == before + 3


def test_an_exception_leaves_what_was_there(fs, place):
    with pytest.raises(RuntimeError), fs.open("notes", "wb") as file:
        file.write(b"half")
        raise RuntimeError
    file = fs.open("notes", "wb")
    file.write(b"never closed")
    del file
    fs.pipe("other", b"1")
    assert kept(place)["notes"] == b"line 1\nline 2\n"


def test_every_other_change_is_one_commit(fs, place):
    for change, expected in (
        (lambda: fs.mkdir("d/e"), {"d/e"}),
        (lambda: fs.cp_file("notes", "d/copy"), {"d/e", "d/copy"}),
        (lambda: fs.copy("train/*", "d/e/train/"), {"d/e", "d/copy", "d/e/train", "d/e/train/x", "d/e/train/y"}),
        (lambda: fs.mv("d/copy", "d/e/train/y"), {"d/e", "d/e/train", "d/e/train/x", "d/e/train/y"}),
        (lambda: fs.mv("d/e/train", "d/t", recursive=True), {"d/e", "d/t", "d/t/x", "d/t/y"}),
        (lambda: fs.mv("d/e", "d/t"), {"d/t", "d/t/e", "d/t/x", "d/t/y"}),
        (lambda: fs.rmdir("d/t/e"), {"d/t", "d/t/x", "d/t/y"}),
        (lambda: fs.rm("d/t", recursive=True), set()),
    ):
        before = commits(place)
        change()
        assert set(fs.find("d", withdirs=True)) - {"d"} == expected
        assert commits(place) == before + 1


def test_removing(fs):
    with pytest.raises(IsADirectoryError):
        fs.rm("train")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("train")
    fs.rm(["train/x", "notes"])
    fs.rm("tr*/*")
    assert fs.find("", withdirs=True) == ["train"]
    fs.pipe("more", b"")
    fs.rm("", recursive=True)
    assert fs.ls("") == []


def test_directories(fs):
    with pytest.raises(FileExistsError):
        fs.mkdir("train")
    with pytest.raises(FileExistsError):
        fs.makedirs("train")
    fs.makedirs("train", exist_ok=True)
    with pytest.raises(FileNotFoundError):
        fs.mkdir("a/b", create_parents=False)
    fs.makedirs("a/b/c")
    assert fs.isdir("a/b/c")
    with pytest.raises(FileExistsError):
        fs.pipe_file("notes", b"", mode="create")


def test_put_and_get(fs, place, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "f").write_bytes(b"f" * 200_000)
    (tmp_path / "in" / "g").write_bytes(b"g")
    before = commits(place)
    fs.put("in", "got", recursive=True)
    assert commits(place) == before + 1
    fs.get("got", "out", recursive=True)
    assert (tmp_path / "out" / "sub" / "f").read_bytes() == b"f" * 200_000
    assert (tmp_path / "out" / "g").read_bytes() == b"g"


# Transactions.


def test_a_transaction_is_one_commit(fs, place):
    before = commits(place)
    with fs.transaction:
        fs.pipe("a", b"1")
        with fs.open("b", "wb") as file:
            file.write(b"2")
        fs.rm("train", recursive=True)
        fs.mkdir("d")
        assert not fs.exists("a")  # until the end, as fsspec has it
        assert commits(place) == before
    assert commits(place) == before + 1
    assert kept(place) == {"a": b"1", "b": b"2", "notes": b"line 1\nline 2\n"}
    fs.pipe("after", b"")
    assert commits(place) == before + 2


def test_a_transaction_that_fails_leaves_nothing(fs, place):
    everything = kept(place)
    before = commits(place)
    with pytest.raises(RuntimeError), fs.transaction:
        fs.pipe("a", b"1")
        fs.rm("notes")
        fs.mv("train/x", "moved")
        with fs.open("train/y", "ab") as file:
            file.write(b"more")
        raise RuntimeError
    assert commits(place) == before
    assert kept(place) == everything
    assert fs.find("") == sorted(everything)
    fs.pipe("a", b"1")  # and it goes on
    assert kept(place) == everything | {"a": b"1"}


def test_a_file_that_fails_within_a_transaction(fs, place):
    with fs.transaction:
        fs.pipe("good", b"1")
        with pytest.raises(RuntimeError), fs.open("bad", "wb") as file:
            file.write(b"half")
            raise RuntimeError
    assert "good" in kept(place)
    assert "bad" not in kept(place)


def test_start_and_end_transaction(fs, place):
    fs.start_transaction()
    fs.pipe("a", b"1")
    assert "a" not in kept(place)
    fs.end_transaction()
    assert kept(place)["a"] == b"1"


def test_without_autocommit_only_commit_counts(place):
    fs = SealedFileSystem(**place, autocommit=False)
    before = commits(place)
    fs.pipe("a", b"1")
    fs.rm("notes")
    assert fs.cat("a") == b"1"
    assert commits(place) == before
    assert fs.commit().sequence == before + 1
    fs.pipe("b", b"lost")
    del fs
    assert sorted(kept(place)) == ["a", "train/x", "train/y"]


def test_two_that_write_in_turn(fs, place):
    other = SealedFileSystem(**place)
    for number in range(3):
        fs.pipe("notes", b"%d" % number)
        other.pipe("notes", b"%d of the other" % number)
        other.rm("train/x") if number == 0 else None
    assert kept(place) == {"notes": b"2 of the other", "train/y": b"y"}
    fs.refresh()
    assert fs.cat("notes") == b"2 of the other"


def test_a_conflict_is_raised_and_what_was_not_committed_is_gone(fs, place):
    other = SealedFileSystem(**place)
    with pytest.raises(ConflictError, match="another process committed"), fs.transaction:
        fs.pipe("mine", b"1")
        fs.rm("notes")
        other.pipe("notes", b"theirs")
    assert kept(place)["notes"] == b"theirs"
    assert "mine" not in kept(place)
    fs.pipe("notes", b"mine again")
    assert kept(place)["notes"] == b"mine again"


# Opening.


def test_a_url_chained_over_a_path(place, tmp_path):
    url = f"sealed://deep/new.txt::file://{tmp_path}/v"
    options = {"sealed": {"key_file": place["key_file"], "anchor": place["anchor"]}}
    with fsspec.open(url, "wt", **options) as file:
        file.write("hello\n")
    with fsspec.open(url, "rt", **options) as file:
        assert file.read() == "hello\n"
    found, path = fsspec.core.url_to_fs(url, **options)
    assert path == "deep/new.txt"
    assert found.cat(url) == b"hello\n"
    files = fsspec.open_files(f"sealed://train/*::file://{tmp_path}/v", "rb", **options)
    assert [file.path for file in files] == ["train/x", "train/y"]


def test_modes(place):
    reader = SealedFileSystem(**place, mode="r")
    assert reader.cat("train/y") == b"y"
    for change in (lambda: reader.pipe("a", b""), lambda: reader.rm("notes"), lambda: reader.mkdir("d")):
        with pytest.raises(UsageError, match="open for reading only"):
            change()
    with pytest.raises(FileExistsError):
        SealedFileSystem(**place, mode="x").ls("")
    with pytest.raises(FileNotFoundError):
        SealedFileSystem(**place | {"vault": "nowhere"}).ls("")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": None}, "anchor: missing"),
        ({"key_file": None}, "wanted key or key_file"),
        ({"key": KEY}, "wanted key or key_file"),
        ({"vault": None}, "vault: wanted"),
        ({"mode": "w"}, "wanted r, r\\+ or x"),
    ],
)
def test_arguments_that_make_no_sense(place, change, message):
    with pytest.raises(UsageError, match=message):
        SealedFileSystem(**place | change)


def test_freshness(place, tmp_path):
    import shutil

    shutil.copytree("v", "old")
    fs = SealedFileSystem(**place)
    fs.pipe("a", b"1")
    fs.pipe("a", b"2")
    fs.close()
    with pytest.raises(RollbackError):
        SealedFileSystem(**place | {"vault": "old"}).exists("a")
    for word in (NO_FRESHNESS, "NO_FRESHNESS"):
        assert not SealedFileSystem(**place | {"vault": "old", "anchor": word}).exists("a")


def test_of_an_open_vault_and_of_a_directory():
    directory = MemoryDirectory()
    anchor = MemoryAnchor()
    fs = SealedFileSystem(vault=directory, key=KEY, anchor=anchor, mode="x")
    fs.pipe("a", b"1")
    fs.close()
    with vault.open(directory, "r+", key=KEY, anchor=anchor) as opened:
        fs = SealedFileSystem(vault=opened)
        fs.pipe("b", b"2")
        assert fs.cat("b") == b"2"
        with pytest.raises(UsageError, match="cannot be pickled"):
            pickle.dumps(fs)
        assert opened.root.sequence == 2


# What does not get out.


def test_the_key_is_in_nothing_that_travels(place):
    fs = SealedFileSystem(**place)
    secret = vault_key(place)
    bare = SealedFileSystem(vault="v", key=secret, anchor=FileAnchor("v.anchor"))
    assert bare.cat("train/y") == b"y"
    forms = [
        repr(bare),
        repr(bare.storage_options),
        bare.to_json(),
        str(bare.to_dict()),
        repr(vars(bare.open("notes"))),
    ]
    for form in forms:
        assert repr(secret)[2:-1] not in form
        assert secret.hex() not in form
        assert "key" not in json.dumps(bare.storage_options)
    with pytest.raises(UsageError, match="which is not pickled") as caught:
        pickle.dumps(bare)
    assert "key_file=" in caught.value.hint
    assert json.loads(fs.to_json())["key_file"] == "v.key"
    assert fsspec.AbstractFileSystem.from_json(fs.to_json()).cat("train/y") == b"y"


def test_a_wrong_key_gets_nothing_that_the_right_one_opened(place):
    right = SealedFileSystem(vault="v", key=vault_key(place), anchor="v.anchor")
    assert right.exists("notes")
    wrong = SealedFileSystem(vault="v", key=KEY, anchor="v.anchor")
    assert wrong is not right
    with pytest.raises(WrongKeyError):
        wrong.exists("notes")


def test_pickled_with_a_key_file(fs, place):
    again = pickle.loads(pickle.dumps(fs))  # noqa: S301
    assert again.cat("train/y") == b"y"
    file = pickle.loads(pickle.dumps(fsspec.core.OpenFile(fs, "notes", "rt")))  # noqa: S301
    with file as text:
        assert text.read() == "line 1\nline 2\n"
    made = SealedFileSystem(**place | {"vault": "v2", "anchor": "v2.anchor"}, mode="x")
    made.pipe("a", b"1")
    assert pickle.loads(pickle.dumps(made)).cat("a") == b"1"  # noqa: S301


def _read_in_child(fs, queue):
    queue.put(fs.cat("train/y"))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_worker_opens_the_vault_anew(fs, place):
    assert fs.cat("notes")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=_read_in_child, args=(fs, queue))
    worker.start()
    assert queue.get() == b"y"
    worker.join()
    assert worker.exitcode == 0
    fs.pipe("a", b"1")
    assert kept(place)["a"] == b"1"


# Object stores.


@pytest.fixture
def bucket():
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket", recursive=True) if memory.exists("/bucket") else None
    yield "memory://bucket/v"
    memory.rm("/bucket", recursive=True)


def test_a_vault_of_objects(bucket, tmp_path):
    options = {"key": KEY, "anchor": FileAnchor(tmp_path / "anchor")}
    fs = SealedFileSystem(vault=bucket, mode="x", **options)
    fs.pipe("train/x", b"x" * 200_000)
    before = set(fsspec.filesystem("memory").find("/bucket"))
    with fs.open("train/x", "r+b") as file:
        file.write(b"first")
    fs.close()
    with fsspec.open(f"sealed://train/x::{bucket}", sealed=dict(options)) as file:
        assert file.read(7) == b"firstxx"
        file.seek(-2, 2)
        assert file.read() == b"xx"
    with fsspec.open(f"sealed://train/y::{bucket}", "wb", sealed=dict(options)) as file:
        file.write(b"y" * 100_000)
    again = SealedFileSystem(vault=bucket, **options)
    assert again.du("") == 300_000
    assert set(fsspec.filesystem("memory").find("/bucket")) - before  # written once, under fresh names


def test_two_that_write_in_turn_to_objects(bucket, tmp_path):
    options = {"vault": bucket, "key": KEY, "anchor": FileAnchor(tmp_path / "anchor")}
    one = SealedFileSystem(**options, mode="x")
    one.pipe("q", b"1" * 100_000)
    two = SealedFileSystem(**options)
    for number in range(3):
        one.pipe("a", b"%d" % number)
        two.pipe("b", b"%d" % number)
    assert two.cat(["a", "b"]) == {"a": b"2", "b": b"2"}
    with pytest.raises(ConflictError), one.transaction:
        one.pipe("c", b"1")
        two.pipe("d", b"1")
    one.pipe("e", b"1")
    assert one.ls("", detail=False) == ["a", "b", "d", "e", "q"]


# The guides.


@pytest.mark.parametrize("page", ["fsspec", "keys"])
def test_the_examples_of_the_guides_run(page, tmp_path, monkeypatch):
    if page == "fsspec":
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "how-to" / f"{page}.md").read_text()
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, f"docs/how-to/{page}.md", "exec"), names)  # noqa: S102
    assert names


# Programs.


def test_pyarrow_data_sets(fs, place):
    pa = pytest.importorskip("pyarrow")
    dataset, parquet = pytest.importorskip("pyarrow.dataset"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"n": list(range(10_000)), "part": [i % 3 for i in range(10_000)]})
    with fs.transaction:
        parquet.write_table(table, "one.parquet", filesystem=fs)
    assert parquet.read_table("one.parquet", filesystem=fs).equals(table)
    dataset.write_dataset(table, "many", format="parquet", partitioning=["part"], filesystem=fs)
    found = dataset.dataset("many", format="parquet", partitioning=["part"], filesystem=fs)
    assert found.count_rows() == 10_000
    assert found.to_table(filter=dataset.field("part") == 1)["n"].to_pylist()[:2] == [1, 4]


def test_pandas(place):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": [1, 2, 3]})
    frame.to_csv("sealed://frame.csv", index=False, storage_options=place)
    assert pandas.read_csv("sealed://frame.csv", storage_options=place).equals(frame)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_checkpoints(place):
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    files = pytest.importorskip("torch.distributed.checkpoint._fsspec_filesystem")
    state = {"weight": torch.arange(100_000, dtype=torch.float32), "step": torch.tensor(7)}
    writer = files.FsspecWriter("sealed://step-7", **place)
    dcp.save(state, storage_writer=writer, no_dist=True)
    loaded = {"weight": torch.zeros(100_000), "step": torch.tensor(0)}
    dcp.load(loaded, storage_reader=files.FsspecReader("sealed://step-7", **place), no_dist=True)
    assert torch.equal(loaded["weight"], state["weight"])
    assert int(loaded["step"]) == 7


def test_a_mapping_of_bytes(fs):
    store = fs.get_mapper("array", create=True)
    store["0.0"] = b"chunk"
    store.setitems({"0.1": b"more", ".meta": b"{}"})
    assert sorted(store) == [".meta", "0.0", "0.1"]
    assert store["0.1"] == b"more"
    del store["0.0"]
    assert "0.0" not in store
