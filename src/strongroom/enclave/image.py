"""Container images that were unpacked to be run: a cache that only its owner can enter, one directory for each digest.

Rules:

- An enclave is measured with the tree as it is when it is launched: one that is not as it was unpacked is refused here,
  and one whose note was changed as well comes to another measurement, which the CAS refuses.
- Beside the tree lie the image's manifest and configuration, which are held to its digest each time they are read.
- A tree appears under its name when it is complete. Two launchers may unpack the same one; the first to end is kept.
- What its owner may read, everybody may: the program's user is whoever the enclave has, and there are no others in it.
  Others of the machine cannot enter the cache.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from strongroom.cas.policy.templates import as_template
from strongroom.crypto import equal
from strongroom.enclave.config import DEPOSITS_DIRECTORY, PROGRAM_DIRECTORY, BootConfig
from strongroom.enclave.digests import Digests
from strongroom.enclave.measure import KNOWN, Part
from strongroom.enclave.oci import Image, blob_path, open_image
from strongroom.enclave.oci_layers import measure_tree, unpack
from strongroom.errors import EnclaveError, TamperedError, UsageError

_TREE: Final = "tree"
_NOTE: Final = "measurement"
_NEW: Final = ".new-"


@dataclass(frozen=True)
class Unpacked:
    """An image with the tree that its layers make.

    Attributes:
        image: its layout is the cache's own, without the layers.
        tree: what becomes the program's root.
        layout: where its layers lie; None if that was not said.
    """

    image: Image
    tree: Path
    layout: Path | None = None

    def again(self, directory: Path) -> Unpacked:
        """The same, unpacked anew below another directory: what its digest says, whatever became of this tree.

        Raises:
            UsageError: nobody said where its layers lie.
            FormatError, TamperedError, UsageError, EnclaveError: as `open_image` and `unpack` raise them.
        """
        if self.layout is None:
            raise UsageError(
                f"image {self.image.digest[:23]}...: a machine that is one TEE unpacks it anew, into memory",
                hint="--image LAYOUT says where it lies",
            )
        return ImageCache(directory).unpacked(self.layout, digest=self.image.digest)

    def measured(self, known: Digests = KNOWN) -> Part:
        """The tree, measured as it is now.

        Raises:
            TamperedError: it is not as it was unpacked.
        """
        part = measure_tree(self.tree, known)
        note = self.tree.with_name(_NOTE)
        told = note.read_text(errors="replace").strip() if note.is_file() else ""
        if not equal(told.encode(), part.digest.hex().encode()):
            raise TamperedError(
                f"image {self.image.digest[:23]}...: {self.tree} is not as it was unpacked",
                hint=f"find out who changed it, remove {self.tree.parent}, and give --image LAYOUT",
            )
        return part


@dataclass(frozen=True)
class ImageCache:
    """Unpacked images of one user, below a directory of theirs."""

    directory: Path

    def unpacked(self, layout: Path, *, reference: str = "", digest: str = "") -> Unpacked:
        """The image of a layout, unpacked unless it is there.

        Raises:
            FormatError, TamperedError, UsageError, EnclaveError: as `open_image` and `unpack` raise them.
        """
        image = open_image(layout, reference=reference, digest=digest)
        place = self._place(image.digest)
        if not place.exists():
            self._unpack(image, place)
        return replace(self.found(image.digest), layout=layout)

    def found(self, digest: str) -> Unpacked:
        """One that was unpacked earlier.

        Raises:
            UsageError: there is none.
            EnclaveError: others can change it.
            TamperedError: its configuration is not the one of that digest.
        """
        place = self._place(digest)
        if not place.is_dir():
            raise UsageError(f"image {digest[:23]}...: is not unpacked here", hint="--image LAYOUT says where it lies")
        self._check()
        return Unpacked(open_image(place, digest=digest), place / _TREE)

    def _place(self, digest: str) -> Path:
        return self.directory / digest.replace(":", "-")

    def _check(self) -> None:
        """Raises EnclaveError if others can put things there."""
        status = self.directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise EnclaveError(f"image cache: {self.directory} is not a directory that only this user can enter")

    def _unpack(self, image: Image, place: Path) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check()
        for stale in self.directory.glob(f"{_NEW}*"):  # of a launcher that was killed
            if not Path("/proc", stale.name.removeprefix(_NEW).partition("-")[0]).exists():
                shutil.rmtree(stale, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=f"{_NEW}{os.getpid()}-", dir=self.directory))
        try:
            _copy_layout(image, new)
            unpack(image, new / _TREE)
            _open_to_all(new / _TREE)
            (new / _NOTE).write_text(measure_tree(new / _TREE).digest.hex() + "\n")
            with suppress(OSError):  # another launcher was quicker
                new.rename(place)
        except OSError as error:
            raise EnclaveError(
                f"image cache: {error.filename or new}: {(error.strerror or str(error)).lower()}"
            ) from None
        finally:
            shutil.rmtree(new, ignore_errors=True)
        if not place.is_dir():
            raise EnclaveError(f"image cache: {place} could not be made")


def with_image(config: BootConfig, image: Image) -> BootConfig:
    """The configuration of a program whose root is that image, as container engines take its own into account.

    The command follows the image's entry point, in place of its arguments if there is one; variables of the
    configuration go before the image's, and paths of the policy's and the enclave's before its volumes.

    Raises:
        UsageError: the image has no command, and the configuration neither.
    """
    command = (*map(as_template, image.entrypoint), *(config.command or map(as_template, image.arguments)))
    if not command:
        raise UsageError("image: has no command of its own", hint="strongroom run --image LAYOUT -- COMMAND ...")
    if any(rule.access == "mirror" for rule in config.vaults):
        raise UsageError(
            "mirror: an image has no Strongroom in it, which a mirror takes", hint="run it without an image"
        )
    own = [rule.mount for rule in (*config.vaults, *config.sealed)] + [rule.path for rule in config.files]
    own += [*config.ephemeral, *config.host, PROGRAM_DIRECTORY, DEPOSITS_DIRECTORY]
    volumes = [each for each in image.volumes if not any(_is_below(each, path) for path in own if path)]
    volumes = [each for each in volumes if not any(_is_below(each, other) for other in volumes if other != each)]
    return replace(
        config,
        command=command,
        environment={name: as_template(value) for name, value in image.environment.items()} | dict(config.environment),
        image=image.digest,
        directory=image.directory,
        volumes=tuple(volumes),
    )


def _is_below(path: str, other: str) -> bool:
    return path == other or path.startswith(other.rstrip("/") + "/")


def layout_of(text: str, what: str = "--image") -> tuple[Path, str]:
    """``LAYOUT`` or ``LAYOUT:TAG``, as `skopeo` has it after ``oci:``; the latter is empty without.

    Args:
        what: names it in an error.

    Raises:
        UsageError: there is no such directory.
    """
    if Path(text).is_dir():
        return Path(text), ""
    place, colon, reference = text.partition(":")
    while colon:
        if Path(place).is_dir() and reference:
            return Path(place), reference
        more, colon, reference = reference.partition(":")
        place = f"{place}:{more}"
    raise UsageError(
        f"{what}: {text} is no directory", hint="an OCI image layout: skopeo copy docker://NAME oci:LAYOUT"
    )


def _copy_layout(image: Image, new: Path) -> None:
    """The image's manifest and configuration, as a layout of one image whose layers are elsewhere."""
    shutil.copyfile(image.layout / "oci-layout", new / "oci-layout")
    one = image.manifest
    described = {"mediaType": one.media_type, "digest": one.digest, "size": one.size}
    (new / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    for one in (image.manifest, image.configuration):
        kind, _, digits = one.digest.partition(":")
        target = new / "blobs" / kind / digits
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(blob_path(image.layout, one), target)


def _open_to_all(tree: Path) -> None:
    for place in (tree, *_below(tree)):
        mode = stat.S_IMODE(place.lstat().st_mode)
        wanted = mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6
        if wanted != mode:
            place.chmod(wanted)


def _below(tree: Path) -> Iterator[Path]:
    """Everything but links."""
    for directory, folders, names in os.walk(tree):
        yield from (each for name in (*folders, *names) if not (each := Path(directory, name)).is_symlink())
