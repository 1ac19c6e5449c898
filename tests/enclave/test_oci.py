"""Container images as programs: layouts, layers and what they come to; and what a hostile registry may send."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import io
import json
import os
import stat
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.cli.main import main
from strongroom.enclave import oci
from strongroom.enclave.oci import Image, open_image
from strongroom.enclave.oci_layers import measure_tree, unpack
from strongroom.enclave.tar import TarReader
from strongroom.errors import FormatError, MissingDependencyError, StrongroomError, TamperedError, UsageError
from tests.enclave.images import Layout, link, member, tar


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "image")


def of_layer(layout: Layout, layer: oci.Descriptor, content: str) -> Image:
    return Image(layout.path, layer, layer, (), (), {}, "/", (), "", ((layer, content),))


def unpacked(layout: Layout, *layers: bytes, **options: Any) -> Path:
    tree = layout.path.with_name("tree")
    unpack(open_image(layout.of(*layers), machine="x86_64"), tree, **options)
    return tree


def names(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*")}


BASE = tar(
    member("usr"),
    member("usr/bin"),
    link("bin", "usr/bin"),
    member("usr/bin/app", b"#!/bin/sh\n", mode=0o4755),
    member("etc/config", b"old"),
    member("etc/removed", b"x"),
    member("cache/a", b"a"),
    member("cache/deep/b", b"b"),
)
TOP = tar(
    member("etc/config", b"new"),
    member("etc/.wh.removed", b""),
    member("cache/c", b"c"),
    member("cache/.wh..wh..opq", b""),
    member("bin/added", b"through the link"),
    link("usr/bin/again", "usr/bin/added", tarfile.LNKTYPE),
)


def test_layers_are_laid_over_one_another(layout: Layout) -> None:
    tree = unpacked(layout, BASE, TOP)
    assert names(tree) == {
        *("usr", "usr/bin", "bin", "usr/bin/app", "usr/bin/added", "usr/bin/again"),
        *("etc", "etc/config", "cache", "cache/c"),
    }
    assert (tree / "etc" / "config").read_text() == "new"
    assert (tree / "usr" / "bin" / "again").read_text() == "through the link"
    assert (tree / "bin").is_symlink()
    # A program of the host's that is set-id there is nothing of the kind here.
    assert stat.S_IMODE((tree / "usr" / "bin" / "app").stat().st_mode) == 0o755


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_form_of_archive_gives_the_same_tree(layout: Layout, compress: bool, form: int) -> None:
    layout.compress = compress
    long = "d" * 90 + "/" + "f" * 90
    raw = tar(member(long, b"long"), member("empty", b""), member("big", b"x" * 1000), form=form)
    tree = unpacked(layout, raw)
    assert (tree / long).read_text() == "long"
    assert ((tree / "empty").read_bytes(), (tree / "big").read_bytes()) == (b"", b"x" * 1000)


def test_the_image_s_command_and_variables(layout: Layout) -> None:
    layout.config |= {"Env": ["PATH=/usr/bin", "EMPTY=", "A=b=c"], "WorkingDir": "/srv", "User": "app"}
    image = open_image(layout.of(BASE), machine="x86_64")
    assert image.command == ("/bin/app", "--serve")
    assert image.command_with(["--train"]) == ("/bin/app", "--train")
    assert image.environment == {"PATH": "/usr/bin", "EMPTY": "", "A": "b=c"}
    assert image.directory == "/srv"
    layout.config = {}
    assert open_image(layout.of(BASE), machine="x86_64").command == ()


def test_one_of_several_images_is_named(layout: Layout) -> None:
    intel, arm = layout.manifest(BASE), layout.manifest(TOP, machine="arm64")
    for one, machine in ((intel, "amd64"), (arm, "arm64")):
        one["platform"] = {"os": "linux", "architecture": machine}
    attestation = layout.manifest(tar()) | {"platform": {"os": "unknown", "architecture": "unknown"}}
    inner = layout.blob(json.dumps({"manifests": [intel, arm, attestation]}).encode(), "index.v1+json")
    other = layout.manifest(tar(member("other", b""))) | {"annotations": {"org.opencontainers.image.ref.name": "v2"}}
    path = layout.index(inner | {"annotations": {"org.opencontainers.image.ref.name": "v1"}}, other)
    assert main(["image", f"{path}:v3"]) == main(["image", str(path), "--reference", "v3"]) == 2
    assert main(["image", f"{path}:v2"]) == main(["image", str(path), "--reference", "v2"]) == 0
    assert main(["image", f"{path}:v2", "--reference", "v1"]) == 2
    assert main(["image", f"{path}x"]) == 2
    assert open_image(path, reference="v1", machine="x86_64").digest == intel["digest"]
    assert open_image(path, reference="v1", machine="aarch64").digest == arm["digest"]
    assert open_image(path, digest=other["digest"], machine="x86_64").digest == other["digest"]
    with pytest.raises(UsageError, match="image: 2 for linux/amd64"):
        open_image(path, machine="x86_64")
    with pytest.raises(UsageError, match="image: 0 for linux/riscv64 named v1"):
        open_image(path, reference="v1", machine="riscv64")


def test_an_image_that_is_not_the_one_wanted(layout: Layout) -> None:
    with pytest.raises(TamperedError, match="image: got sha256:"):
        open_image(layout.of(BASE), digest="sha256:" + "0" * 64, machine="x86_64")


def test_the_measurement_is_of_what_runs_and_of_nothing_else(layout: Layout, tmp_path: Path) -> None:
    first = measure_tree(unpacked(layout, BASE))
    later = tar(
        *(
            (info, content)
            for info, content in (
                member("cache/deep/b", b"b", mtime=99, uid=7, uname="u"),
                member("cache/a", b"a"),
                member("etc/removed", b"x"),
                member("etc/config", b"old"),
                member("usr/bin/app", b"#!/bin/sh\n", mode=0o755),
                link("bin", "usr/bin"),
            )
        )
    )
    again = Layout(tmp_path / "again")
    unpack(open_image(again.of(later), machine="x86_64"), tmp_path / "other")
    assert measure_tree(tmp_path / "other").digest == first.digest
    for change in (
        lambda root: (root / "etc" / "config").write_text("changed"),
        lambda root: (root / "etc" / "config").chmod(0o755),
        lambda root: (root / "new").mkdir(),
        lambda root: ((root / "bin").unlink(), (root / "bin").symlink_to("cache")),
    ):
        before = measure_tree(tmp_path / "other").digest
        change(tmp_path / "other")
        assert measure_tree(tmp_path / "other").digest != before
    os.mkfifo(tmp_path / "other" / "fifo")
    with pytest.raises(FormatError, match="fifo is no file, directory or link"):
        measure_tree(tmp_path / "other")


def test_the_command_tells_and_unpacks(
    layout: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.uname", lambda: types.SimpleNamespace(machine="x86_64"))
    layout.config |= {"Env": ["NAME=\x1b[31mred"]}
    path, tree = layout.of(BASE, TOP), layout.path.with_name("tree")
    assert main(["image", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["entrypoint"], told["arguments"], told["layers"]) == (["/bin/app"], ["--serve"], 2)
    assert main(["image", str(path), "--digest", told["image"], "--unpack", str(tree)]) == 0
    text = capsys.readouterr().out
    assert told["measurement"] in text and "\x1b" not in text
    assert measure_tree(tree).digest.hex() == told["measurement"]
    assert main(["image", str(path), "--digest", "sha256:" + "0" * 64]) == 23
    assert main(["image", str(path), "--max-files", "2"]) == 10
    assert main(["image", str(path), "--max-files", "0"]) == 2
    assert main(["image", str(path), "--unpack", str(tree)]) == 2


OUTSIDE = b"out of the tree"


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([member("/etc/passwd", OUTSIDE)], "wanted a relative one"),
        ([member("../outside", OUTSIDE)], "leads upwards"),
        ([member("a/../../outside", OUTSIDE)], "leads upwards"),
        ([member(".wh...", b"")], "no whiteout"),
        ([member("x/.wh.", b"")], "no whiteout"),
        ([member("x/.wh..wh.aufs", b"")], "no whiteout"),
        ([member("null", type=tarfile.CHRTYPE)], "a character device"),
        ([member("sda", type=tarfile.BLKTYPE)], "a block device"),
        ([member("pipe", type=tarfile.FIFOTYPE)], "a FIFO"),
        ([link("hard", "../../etc/passwd", tarfile.LNKTYPE)], "leads upwards"),
        ([link("hard", "/etc/passwd", tarfile.LNKTYPE)], "wanted a relative one"),
        ([link("hard", "nowhere", tarfile.LNKTYPE)], "what is no file"),
        ([link("s", "/etc/passwd"), link("hard", "s", tarfile.LNKTYPE)], "what is no file"),
        ([link("a", "b"), link("b", "a"), member("a/f", b"")], "too many links"),
        ([member("f", b""), member("f/g", b"")], "leads through a file"),
        ([member(".", b"root")], "its root is no directory"),
        ([member("n" * 256, b"")], "a name of more than 255 bytes"),
        ([member("d/" * 300 + "f", b"")], "more than 256 directories"),
    ],
)
def test_a_hostile_layer_is_refused(layout: Layout, members: list[Any], why: str) -> None:
    with pytest.raises(FormatError, match=why):
        unpacked(layout, tar(*members))
    # Nothing is left of it, in the tree's place or beside it.
    assert {path.name for path in layout.path.parent.iterdir()} == {"image"}


@pytest.mark.parametrize("target", ["/", "/../../..", "../../../..", "/proc/self/root"])
def test_a_link_leads_nowhere_but_into_the_tree(layout: Layout, target: str) -> None:
    tree = unpacked(layout, tar(link("out", target), member("out/escaped", OUTSIDE)))
    inside = [path for path in tree.rglob("escaped") if not any(each.is_symlink() for each in path.parents)]
    assert len(inside) == 1
    assert not Path("/escaped").exists() and not (layout.path.parent / "escaped").exists()


def test_a_whiteout_hides_nothing_outside_or_of_its_own_layer(layout: Layout) -> None:
    precious = layout.path.parent / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    below = tar(link("out", str(precious)), link("up", "../precious"), member("d/low", b""), member("d/sub/low", b""))
    own = tar(
        member("out/.wh.file", b""),
        member("up/.wh..wh..opq", b""),
        member("d/own", b""),
        member("d/sub/own", b""),
        member("d/.wh.own", b""),
        member("d/.wh..wh..opq", b""),
        member("gone/.wh.x", b""),
    )
    tree = unpacked(layout, below, own)
    assert (precious / "file").read_text() == "kept"
    assert names(tree) == {"out", "up", "d", "d/own", "d/sub", "d/sub/own"}
    tree = layout.path.with_name("again")
    unpack(open_image(layout.of(below, tar(member(".wh.out", b""))), machine="x86_64"), tree)
    assert not (tree / "out").is_symlink() and (precious / "file").exists()


def test_caps_on_what_an_image_may_unpack_to(layout: Layout) -> None:
    for options in ({"max_bytes": 999}, {"max_files": 1}):
        with pytest.raises(FormatError, match="more files or bytes"):
            unpacked(layout, tar(member("a", b"x" * 600), member("b", b"x" * 600)), **options)
    # What a header claims is believed no more than what comes.
    claimed, _ = member("a", b"")
    claimed.size = 1 << 33
    with pytest.raises(FormatError, match="cut short"):
        unpacked(layout, claimed.tobuf())


def blobs(layout: Layout) -> list[Path]:
    return sorted((layout.path / "blobs" / "sha256").iterdir())


def test_every_bit_of_an_image_is_under_its_digest(layout: Layout) -> None:
    image = open_image(layout.of(tar(member("a", b"content"))), machine="x86_64")
    for blob in blobs(layout):
        content = blob.read_bytes()
        for changed in (content + b" ", content[:-1], bytes([content[0] ^ 1]) + content[1:], b""):
            blob.write_bytes(changed)
            with pytest.raises((TamperedError, FormatError)):
                unpack(open_image(layout.path, digest=image.digest, machine="x86_64"), layout.path.with_name("t"))
            assert not layout.path.with_name("t").exists()
        blob.write_bytes(content)
    blobs(layout)[0].unlink()
    with pytest.raises(FormatError, match="is not in"):
        unpack(open_image(layout.path, machine="x86_64"), layout.path.with_name("t"))


def test_a_layer_is_also_what_the_configuration_says(layout: Layout) -> None:
    one, other = (
        json.loads(
            (layout.path / "blobs" / "sha256" / layout.manifest(tar(member("a", content)))["digest"][7:]).read_bytes()
        )
        for content in (b"1", b"2")
    )
    mixed = layout.blob(json.dumps(one | {"layers": other["layers"]}).encode(), "manifest.v1+json")
    with pytest.raises(TamperedError, match="its content is not"):
        unpack(open_image(layout.index(mixed), machine="x86_64"), layout.path.with_name("t"))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"not gzip", "no gzip file"),
        (gzip.compress(BASE, mtime=0)[:-9], "cut short"),
        (gzip.compress(BASE, mtime=0)[:-8] + bytes(8), "no gzip file"),
        (gzip.compress(BASE[:700], mtime=0), "cut short"),
        (gzip.compress(b"", mtime=0), "cut short"),
        (gzip.compress(BASE + b"\1" * 512, mtime=0), "goes on after its end"),
    ],
)
def test_a_layer_that_is_none(layout: Layout, raw: bytes, why: str) -> None:
    layer = layout.blob(raw, "layer.v1.tar+gzip")
    image = of_layer(layout, oci._descriptor(layer, "layer"), "sha256:" + "0" * 64)
    with pytest.raises(FormatError, match=why):
        unpack(image, layout.path.with_name("t"))


def test_several_gzip_members_are_one_layer(layout: Layout) -> None:
    raw = gzip.compress(BASE[:1000]) + gzip.compress(BASE[1000:])
    content = f"sha256:{hashlib.sha256(BASE).hexdigest()}"
    layer = oci._descriptor(layout.blob(raw, "layer.v1.tar+gzip"), "layer")
    unpack(of_layer(layout, layer, content), layout.path.with_name("t"))
    assert (layout.path.with_name("t") / "etc" / "removed").exists()


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "does not exist"),
        ({"oci-layout": "{}"}, "got version None"),
        ({"oci-layout": '{"imageLayoutVersion": "2.0.0"}'}, "got version '2.0.0'"),
        ({"index.json": "["}, "is no JSON"),
        ({"index.json": "[]"}, "is no JSON object"),
        ({"index.json": "{}"}, "says nothing of manifests"),
        ({"index.json": '{"manifests": [1]}'}, "wanted a descriptor"),
        ({"index.json": '{"manifests": [{"digest": "md5:00"}]}'}, "digest: got 'md5:00'"),
        ({"index.json": '{"manifests": [{"digest": "sha256:../../x", "size": 1}]}'}, "digest: got"),
        ({"index.json": "[" * 100_000}, "is no JSON"),
    ],
)
def test_a_layout_that_is_none(tmp_path: Path, files: dict[str, str], why: str) -> None:
    given = {"oci-layout": '{"imageLayoutVersion": "1.0.0"}', "index.json": "{}"} if files else {}
    for name, text in (given | files).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=why):
        open_image(tmp_path, machine="x86_64")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"Env": ["novalue"]}, "config.Env: got 'novalue'"),
        ({"Env": "A=b"}, "wanted a list"),
        ({"Cmd": [1]}, "config.Cmd"),
        ({"Entrypoint": ["a\0b"]}, "config.Entrypoint"),
        ({"WorkingDir": "../.."}, "config.WorkingDir"),
        ({"WorkingDir": "/a/../.."}, "config.WorkingDir"),
    ],
)
def test_a_configuration_that_no_program_can_have(layout: Layout, config: dict[str, Any], why: str) -> None:
    layout.config = config
    with pytest.raises(FormatError, match=why):
        open_image(layout.of(BASE), machine="x86_64")


def test_an_index_that_holds_itself_ends(layout: Layout) -> None:
    one = layout.manifest(BASE)
    for _ in range(6):
        one = layout.blob(json.dumps({"manifests": [one]}).encode(), "index.v1+json")
    with pytest.raises(FormatError, match="more than 3 in one another"):
        open_image(layout.index(one), machine="x86_64")


def test_an_unsupported_compression_is_named(layout: Layout) -> None:
    layer = layout.blob(b"", "layer.v1.tar+lz4")
    image = of_layer(layout, oci._descriptor(layer, "layer"), "sha256:" + "0" * 64)
    with pytest.raises(FormatError, match=r"tar\+lz4 is not supported"):
        unpack(image, layout.path.with_name("t"))


def test_without_zstd_it_is_said_what_to_do(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    layer = layout.blob(b"", "layer.v1.tar+zstd")
    image = of_layer(layout, oci._descriptor(layer, "layer"), "sha256:" + "0" * 64)
    with pytest.raises(MissingDependencyError, match="compressed by zstd") as caught:
        unpack(image, layout.path.with_name("t"))
    assert "strongroom[zstd]" in str(caught.value.hint)
    assert not layout.path.with_name("t").exists()


@pytest.fixture
def zstd() -> Any:
    try:
        return importlib.import_module("compression.zstd")
    except ImportError:
        return pytest.importorskip("backports.zstd")


def test_layers_of_zstd(layout: Layout, zstd: Any) -> None:
    content = f"sha256:{hashlib.sha256(BASE).hexdigest()}"
    frames = zstd.compress(BASE[:1000]) + zstd.compress(BASE[1000:])
    layer = oci._descriptor(layout.blob(frames, "layer.v1.tar+zstd"), "layer")
    unpack(of_layer(layout, layer, content), layout.path.with_name("t"))
    assert names(layout.path.with_name("t")) == names(unpacked(layout, BASE))
    bomb = of_layer(
        layout, oci._descriptor(layout.blob(zstd.compress(bytes(1 << 25)), "layer.v1.tar+zstd"), "l"), content
    )
    with pytest.raises(FormatError, match="more bytes than it may"):
        unpack(bomb, layout.path.with_name("bomb"), max_bytes=1 << 20, max_files=10)


@pytest.mark.parametrize(("cut", "why"), [(slice(0, -10), "cut short"), (slice(1, None), "no zstd file")])
def test_a_layer_that_is_no_zstd(layout: Layout, zstd: Any, cut: slice, why: str) -> None:
    layer = oci._descriptor(layout.blob(zstd.compress(BASE)[cut], "layer.v1.tar+zstd"), "layer")
    with pytest.raises(FormatError, match=why):
        unpack(of_layer(layout, layer, "sha256:" + "0" * 64), layout.path.with_name("t"))


def test_a_window_of_zstd_is_bounded(layout: Layout, zstd: Any) -> None:
    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.checksum_flag: 1}
    engine = zstd.ZstdCompressor(options=options)
    raw = engine.compress(BASE) + engine.flush()
    layer = oci._descriptor(layout.blob(raw, "layer.v1.tar+zstd"), "layer")
    with pytest.raises(FormatError, match="no zstd file"):
        unpack(of_layer(layout, layer, "sha256:" + "0" * 64), layout.path.with_name("t"))


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(TOP)), junk=st.binary(max_size=24), cut=st.integers(0, 2000))
def test_a_hostile_archive_raises_nothing_else(at: int, junk: bytes, cut: int) -> None:
    raw = bytearray(TOP)
    raw[at : at + len(junk)] = junk
    reader = TarReader(io.BytesIO(bytes(raw[: len(raw) - cut])))
    try:
        for _ in reader:
            b"".join(reader.pieces())
    except StrongroomError:
        pass


_KEYS = ["config", "layers", "rootfs", "diff_ids", "digest", "size", "mediaType", "Env", "Cmd", "platform"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.text(max_size=4) | st.just("sha256:" + "0" * 64),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), below, max_size=4),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None)
@given(index=_JSON, manifest=_JSON, config=_JSON)
def test_hostile_documents_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, index: Any, manifest: Any, config: Any
) -> None:
    layout = Layout(tmp_path_factory.mktemp("image"))
    described = layout.blob(json.dumps(config).encode(), "config.v1+json")
    if isinstance(manifest, dict):
        manifest = {"config": described} | manifest
    entry = layout.blob(json.dumps(manifest).encode(), "manifest.v1+json")
    for path in (layout.index(entry), layout.index(index)):
        with contextlib.suppress(StrongroomError):
            open_image(path, machine="x86_64")


def test_a_pipe_in_a_layout_is_not_waited_for(layout: Layout) -> None:
    path = layout.of(BASE)
    (path / "index.json").unlink()
    os.mkfifo(path / "index.json")
    with pytest.raises(FormatError, match="is no file"):
        open_image(path, machine="x86_64")


_TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=120
)


@settings(max_examples=80, deadline=None)
@given(path=_TEXT, content=st.binary(max_size=1500), form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_reads_what_python_s_own_writer_writes(path: str, content: bytes, form: int) -> None:
    reader = TarReader(io.BytesIO(tar(member(path, content), link("l", path), form=form)))
    found = [(each.path, each.kind, each.link, b"".join(reader.pieces())) for each in reader]
    assert found == [(path, "file", "", content), ("l", "symlink", path, b"")]
