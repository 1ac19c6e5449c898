"""The sealed file: one encrypted, authenticated, crash-consistent file with a root.

What it protects: content (confidential and authentic to the bit), the order of commits, and, with an anchor, freshness.
What whoever holds the disk still learns: the file's size, when it changes, and which blocks change.

`open_sealed` is the way in; the format is specified in docs/spec/sealed-file.md.
"""

from strongroom.sealed.anchor import (
    NO_FRESHNESS,
    Anchor,
    FileAnchor,
    Grouped,
    MemoryAnchor,
    NoFreshness,
    PinnedAnchor,
    Root,
)
from strongroom.sealed.file import SealedFile
from strongroom.sealed.keyfile import create_key, load_key
from strongroom.sealed.opening import open_sealed

__all__ = [
    "NO_FRESHNESS",
    "Anchor",
    "FileAnchor",
    "Grouped",
    "MemoryAnchor",
    "NoFreshness",
    "PinnedAnchor",
    "Root",
    "SealedFile",
    "create_key",
    "load_key",
    "open_sealed",
]
