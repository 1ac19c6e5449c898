"""Where sealed bytes rest: random-access files, and the directories that hold them.

This is the one seam between Strongroom and a disk. All above it sees `Storage` and `Directory`, so that tests run on
memory and inject faults (`strongroom.testing.storage`), and so that a platform without a call falls back here only.

Rules:

- Nothing read from a storage is trusted: the host may change it at any time, between two reads too.
- A write is durable after the next `sync` of its file has returned; a name after the next `sync` of its directory.
- Whoever opens a file for writing excludes every other opener until it closes, where the platform has such locks.
  Without them (Windows) writers exclude writers, and a reader that a writer overtakes gets an integrity error, never
  wrong bytes. An opener that says `shared` excludes nobody: it coordinates by `ByteLocks`.
- Locks are advice among honest openers. The host can ignore, take or drop them; integrity never rests on one.
"""

from strongroom.storage.local import FileStorage, LocalDirectory
from strongroom.storage.locks import OPEN_BYTE
from strongroom.storage.mapped import MmapStorage
from strongroom.storage.memory import MemoryDirectory, MemoryStorage
from strongroom.storage.objects import ObjectDirectory, open_directory
from strongroom.storage.protocols import LOCKS_AT, ByteLocks, Directory, OpenMode, Storage, is_full

__all__ = [
    "LOCKS_AT",
    "OPEN_BYTE",
    "ByteLocks",
    "Directory",
    "FileStorage",
    "LocalDirectory",
    "MemoryDirectory",
    "MemoryStorage",
    "MmapStorage",
    "ObjectDirectory",
    "OpenMode",
    "Storage",
    "is_full",
    "open_directory",
]
