"""The older commits that a mirror keeps: which there are, and going back to one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from strongroom.errors import UsageError
from strongroom.mirror.manifest import Manifest
from strongroom.mirror.restored import Restored, read_manifest
from strongroom.sealed import Anchor, NoFreshness, Root
from strongroom.sealed.file import SealedFile
from strongroom.sealed.opening import open_sealed

_COPIED: Final = 4 << 20  # bytes at once; a multiple of every block size

Progress = Callable[[str, int], None]


def steps(restored: Restored) -> list[int]:
    """The steps that can be read now, the oldest first; `restored` is the newest commit."""
    return [step for step, _ in _kept(restored._file, restored.manifest)] + [restored.step]


def go_back(
    path: str | os.PathLike[str],
    step: int,
    *,
    key: bytes,
    anchor: Anchor | NoFreshness,
    progress: Progress | None = None,
) -> Root:
    """Make an older commit that is kept the one that training goes on from; the root of the mirror then.

    It is one commit of the sealed file, with the older one's content, on top of all others: the anchor moves on as
    ever. Commits of later steps are given up with it, and not before. Every block of the older one is read first.

    Args:
        progress: is told of a name, and of how many more bytes are done.

    Raises:
        FileNotFoundError: there is no mirror.
        LockedError: somebody has it open for writing.
        UsageError: that step is not kept.
        IntegrityError: a block of it is not what was committed. Nothing was changed.
        OSError: the disk failed. The newest commit stays the newest, but for a failure of the last sync.
        as `open_sealed`.
    """
    file = open_sealed(Path(path), "r+", key=key, anchor=anchor)
    try:
        newest = read_manifest(file)
        if step == newest.step and file.root:
            return file.root
        kept = _kept(file, newest)
        sequence = dict(kept).get(step)
        if sequence is None:
            known = ", ".join(str(one) for one, _ in (*kept, (newest.step, 0)))
            raise UsageError(f"step: {step} is not kept, wanted one of {known}")
        before = [one for one in kept if one[0] < step]
        with open_sealed(Path(path), "r", key=key, anchor=anchor, at=sequence) as old:
            old.verify()
            manifest = replace(read_manifest(old), kept=tuple(before))
            _copy(old, file, manifest, progress or _untold)
        numbers = {number for _, number in before}
        for root in file.retained:
            if root.sequence not in numbers:
                file.release(root)
        root = file.commit(retain=True)
        file.close()
        return root
    finally:
        file.discard()


def _kept(file: SealedFile, newest: Manifest) -> list[tuple[int, int]]:
    sequences = {root.sequence for root in file.retained}
    return [(step, sequence) for step, sequence in newest.kept if sequence in sequences and step < newest.step]


def _copy(old: SealedFile, new: SealedFile, manifest: Manifest, progress: Progress) -> None:
    """Make the content of `new` that of `old`, under another manifest; what no array names becomes holes."""
    layout = manifest.layout
    new.truncate(0)
    for name, start, size in [
        *((entry.name, entry.offset, entry.whole) for entry in layout.entries),
        ("", layout.area, layout.rest),
    ]:
        buffer = memoryview(bytearray(min(size, _COPIED)))
        for at in range(start, start + size, _COPIED):
            part = buffer[: min(_COPIED, start + size - at)]
            old.read_at(at, part)
            new.write_at(at, part)
            progress(name, len(part))
    new.write_at(layout.area + layout.rest, manifest.to_bytes())


def _untold(name: str, count: int) -> None:
    pass
