"""Content digests: what identifies bytes across parties, key holders included.

A root of a sealed file means something among holders of its key only, since they can make two contents with equal tags
(docs/explanation/architecture.md); BLAKE3 is for everybody, and reads data sets at the speed of memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12


@dataclass(frozen=True)
class ContentDigest:
    """What some bytes are.

    Attributes:
        size: how many.
        blake3: 32 bytes.
        sha256: 32 bytes, for tools that know no BLAKE3; empty where nobody asked for it.
    """

    size: int
    blake3: bytes
    sha256: bytes = b""


def content_digest(pieces: Iterable[Buffer], *, sha256: bool = False) -> ContentDigest:
    """The digests of the concatenation of `pieces`."""
    size, fast, common = 0, blake3(), hashlib.sha256()
    for piece in pieces:
        size += memoryview(piece).nbytes
        fast.update(piece)
        if sha256:
            common.update(piece)
    return ContentDigest(size, fast.digest(), common.digest() if sha256 else b"")
