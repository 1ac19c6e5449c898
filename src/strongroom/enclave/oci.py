"""Container images as programs: an OCI image layout, as `skopeo copy ... oci:DIR` and `docker buildx` write it.

The layout is the host's: nothing in it is believed but what a digest covers, from that of the image's manifest down.
Each blob has the size and the digest that its descriptor says. `oci_layers` unpacks the layers and measures the tree.

Source: OCI Image Format Specification 1.1, "Image Layout", "Image Index", "Image Manifest", "Image Configuration".
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from strongroom.crypto import equal
from strongroom.errors import FormatError, TamperedError, UsageError

MAX_JSON = 4 << 20
MAX_LAYERS = 127
MAX_VOLUMES = 64
MAX_PATH = 4096
MAX_BLOB = 64 << 30
_MAX_DEPTH = 3  # of an index in an index

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_REFERENCE = "org.opencontainers.image.ref.name"
_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_VARIABLE = re.compile(r"[^=\0]+=[^\0]*")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class Descriptor(NamedTuple):
    """Where a blob is, and what it must be."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    """An image of a layout. Its configuration is authentic under `digest`; its layers are when they are unpacked.

    Attributes:
        manifest, configuration: where the two documents are that say all of this.
        command: its entry point and its arguments.
        environment: its variables.
        directory: where its program starts.
        volumes: directories that its program may write to.
        user: whom it wants to run as.
        layers: with the digest of each one's content.
    """

    layout: Path
    manifest: Descriptor
    configuration: Descriptor
    entrypoint: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    volumes: tuple[str, ...]
    user: str
    layers: tuple[tuple[Descriptor, str], ...] = field(repr=False)

    @property
    def digest(self) -> str:
        """Of its manifest, ``sha256:<hex>``: that of the image."""
        return self.manifest.digest

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.entrypoint, *self.arguments)

    def command_with(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """Its entry point with other arguments than its own, as container engines have it."""
        return (*self.entrypoint, *arguments) if arguments else self.command


def open_image(layout: Path, *, reference: str = "", digest: str = "", machine: str | None = None) -> Image:
    """The image of a layout for this kind of machine.

    Args:
        layout: a directory with `oci-layout`, `index.json` and `blobs`.
        reference: the name that `index.json` annotates it with, if there are several.
        digest: what the image must be; without, whatever the layout has.
        machine: as `uname -m` says; by default that of this machine.

    Raises:
        FormatError: not an image layout, or not a supported one.
        TamperedError: a blob is not what its descriptor says, or the image is not `digest`.
        UsageError: there is none such, or there are several.
    """
    architecture = _MACHINES.get(machine or os.uname().machine, machine or os.uname().machine)
    marker = _json(_small(layout / "oci-layout", MAX_JSON), "oci-layout")
    if marker.get("imageLayoutVersion") != "1.0.0":
        raise FormatError(f"oci-layout: got version {_short(marker.get('imageLayoutVersion'))}, wanted '1.0.0'")
    index = _json(_small(layout / "index.json", MAX_JSON), "index.json")
    found = list(_candidates(layout, index, reference, architecture, 0))
    found = [each for each in found if each.digest == digest] if digest and len(found) > 1 else found
    if len({each.digest for each in found}) != 1:
        what = f" named {reference}" if reference else ""
        raise UsageError(
            f"image: {len(found)} for linux/{architecture}{what} in {layout}, wanted one",
            hint=_which(index, reference, bool(found)),
        )
    chosen = found[0]
    if digest and not equal(chosen.digest.encode(), digest.encode()):
        raise TamperedError(f"image: got {chosen.digest[:23]}..., wanted {digest[:23]}...")
    return _image(layout, chosen, architecture)


def _which(index: Mapping[str, Any], reference: str, several: bool) -> str:
    """What to do about an index that has none or several of the images that were asked for."""
    told = [each.get("annotations") for each in index["manifests"] if isinstance(each, dict)]
    names = sorted({str(each[_REFERENCE])[:60] for each in told if isinstance(each, dict) and _REFERENCE in each})
    if names and (several or (reference and reference not in names)):
        return f"the index has: {', '.join(names[:8])}{', ...' * (len(names) > 8)}"
    return "name it by its digest" if several else "build it for this architecture"


def _candidates(
    layout: Path, index: Mapping[str, Any], reference: str, architecture: str, depth: int
) -> Iterator[Descriptor]:
    manifests = index.get("manifests")
    if not isinstance(manifests, list) or len(manifests) > 1000:
        raise FormatError("index: says nothing of manifests, or of too many")
    for each in manifests:
        one = _descriptor(each, "manifest")
        annotations = each.get("annotations") or {}
        if reference and depth == 0 and (not isinstance(annotations, dict) or annotations.get(_REFERENCE) != reference):
            continue
        platform = each.get("platform")
        if isinstance(platform, dict) and (platform.get("os"), platform.get("architecture")) != ("linux", architecture):
            continue
        if one.media_type in _INDEXES:
            if depth == _MAX_DEPTH:
                raise FormatError(f"index: more than {_MAX_DEPTH} in one another")
            inner = _json(_blob(layout, one), "index")
            yield from _candidates(layout, inner, reference, architecture, depth + 1)
        elif one.media_type in _MANIFESTS:
            yield one


def _image(layout: Path, chosen: Descriptor, architecture: str) -> Image:
    manifest = _json(_blob(layout, chosen), "manifest")
    described = _descriptor(manifest.get("config"), "config")
    configuration = _json(_blob(layout, described), "config")
    kind = (configuration.get("os"), configuration.get("architecture"))
    if kind != ("linux", architecture):
        raise UsageError(
            f"image: built for {_short(kind[0])}, {_short(kind[1])}, this machine is linux, {architecture}",
            hint="build or copy it for this architecture: skopeo copy --override-arch, docker buildx --platform",
        )
    layers = [_descriptor(each, "layer") for each in _list(manifest.get("layers"), "layers")]
    rootfs = configuration.get("rootfs")
    contents = _list(rootfs.get("diff_ids") if isinstance(rootfs, dict) else None, "rootfs.diff_ids")
    if len(layers) != len(contents) or len(layers) > MAX_LAYERS:
        raise FormatError(f"image: {len(layers)} layers and {len(contents)} digests of them, at most {MAX_LAYERS}")
    for content in contents:
        algorithm(content)
    told = configuration.get("config") or {}
    if not isinstance(told, dict):
        raise FormatError("config: is no object")
    environment = {}
    for each in _words(told.get("Env"), "Env"):
        if not _VARIABLE.fullmatch(each):
            raise FormatError(f"config.Env: got {each[:40]!r}, wanted NAME=VALUE")
        name, _, value = each.partition("=")
        environment[name] = value
    volumes = told.get("Volumes") or {}
    if not isinstance(volumes, dict) or len(volumes) > MAX_VOLUMES:
        raise FormatError(f"config.Volumes: wanted an object of at most {MAX_VOLUMES} paths")
    user = told.get("User") or ""
    if not isinstance(user, str) or not user.isprintable() or len(user) > 256:
        raise FormatError(f"config.User: got {_short(user)}, wanted a name or a number")
    return Image(
        layout,
        chosen,
        described,
        _words(told.get("Entrypoint"), "Entrypoint"),
        _words(told.get("Cmd"), "Cmd"),
        environment,
        _place(told.get("WorkingDir") or "/", "WorkingDir"),
        tuple(sorted({_place(each, "Volumes") for each in volumes})),
        user,
        tuple(zip(layers, contents, strict=True)),
    )


def _place(value: object, what: str) -> str:
    """An absolute path without a slash at its end."""
    if (
        not isinstance(value, str)
        or not value.startswith("/")
        or ".." in value.split("/")
        or not value.isprintable()
        or len(value) > MAX_PATH
    ):
        raise FormatError(f"config.{what}: got {_short(value)}, wanted an absolute path")
    return "/" + "/".join(part for part in value.split("/") if part not in ("", "."))


def algorithm(digest: object) -> str:
    """Which one a digest is of. Raises FormatError if it is none."""
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise FormatError(f"digest: got {_short(digest)}, wanted sha256: or sha512: and hexadecimal digits")
    return found[1] or found[3]


def _descriptor(value: object, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise FormatError(f"{what}: got {_short(value)}, wanted a descriptor")
    kind, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    algorithm(digest)
    if not isinstance(kind, str) or type(size) is not int or not 0 <= size <= MAX_BLOB:
        raise FormatError(f"{what}: a descriptor without its media type or size")
    return Descriptor(kind, str(digest), size)


def blob_path(layout: Path, one: Descriptor) -> Path:
    """Raises FormatError if there is no such blob."""
    algorithm, _, digits = one.digest.partition(":")
    path = layout / "blobs" / algorithm / digits
    if not path.is_file():
        raise FormatError(f"blob: {one.digest[:23]}... is not in {layout}")
    return path


def _blob(layout: Path, one: Descriptor) -> bytes:
    """A small blob, authentic."""
    if one.size > MAX_JSON:
        raise FormatError(f"blob {one.digest[:23]}...: {one.size} bytes, wanted at most {MAX_JSON}")
    raw = _small(blob_path(layout, one), one.size)
    found = hashlib.new(algorithm(one.digest), raw).hexdigest()
    if len(raw) != one.size or not equal(found.encode(), one.digest.partition(":")[2].encode()):
        raise TamperedError(f"blob {one.digest[:23]}...: its digest is {found[:16]}...")
    return raw


def _small(path: Path, limit: int) -> bytes:
    if not path.is_file():  # nor a pipe, which would be waited for
        raise FormatError(f"image layout: {path} does not exist, or is no file")
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise TamperedError(f"image layout: {path}: more than {limit} bytes")
    return raw


def _json(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise FormatError(f"{what}: is no JSON") from None
    if not isinstance(value, dict):
        raise FormatError(f"{what}: is no JSON object")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{what}: got {_short(value)}, wanted a list")
    return value


def _words(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    words = _list(value, f"config.{what}")
    if len(words) > 4096 or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise FormatError(f"config.{what}: wanted a list of strings")
    return tuple(words)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
