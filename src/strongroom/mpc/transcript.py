"""What a party has done so far, as a digest that the others compare and a history that names where they differ."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from strongroom.crypto import content_digest, digest
from strongroom.errors import UsageError

if TYPE_CHECKING:
    from strongroom.mpc.ring import Words  # which needs torch; who only names parties does not

VERSION = "3"  # of the protocols: their messages, draws and order
DIGEST_SIZE = 16
_KEPT = 256  # operations that can be named when programs differ
_LINE = 160  # characters


class Transcript:
    """The running digest of one epoch's operations.

    Every operation enters with its name, shapes, widths and the digest of its public operands, before it draws or sends
    anything. A frame carries the digest at its time, so two programs that differ are found at the first frame after.

    Attributes:
        digest: 16 bytes.
        count: operations so far.
    """

    def __init__(self, epoch: bytes) -> None:
        self.digest = digest(b"strongroom mpc transcript\0", VERSION.encode(), b"\0", epoch)[:DIGEST_SIZE]
        self.count = 0
        self._kept: deque[tuple[int, str]] = deque(maxlen=_KEPT)

    def add(self, name: str, *facts: object, public: Words | None = None) -> None:
        """Enter an operation: its name and whatever else must be the same for all parties."""
        line = " ".join((name, *map(str, facts)))
        if public is not None:
            data = np.ascontiguousarray(public)
            line += f" public {content_digest([data.reshape(-1).view(np.uint8)]).blake3[:16].hex()}"
        text = line.encode()
        self.digest = digest(self.digest + len(text).to_bytes(4, "big") + text)[:DIGEST_SIZE]
        self.count += 1
        self._kept.append((self.count, line))

    def history(self) -> bytes:
        """The last operations, one a line, for the peer to find where it parted."""
        return "\n".join(f"{number} {line[:_LINE]}" for number, line in self._kept).encode()


def difference(ours: bytes, theirs: bytes, our_name: str, their_name: str) -> str:
    """Where two histories part, in words."""
    left, right = _parse(ours), _parse(theirs)
    for number in sorted(left.keys() & right.keys()):
        if left[number] != right[number]:
            return f"operation {number}: {our_name} runs {left[number]}, {their_name} runs {right[number]}"
    for name, more, less in ((our_name, left, right), (their_name, right, left)):
        beyond = sorted(more.keys() - less.keys())
        if beyond and (not less or beyond[-1] > max(less)):
            first = next(number for number in beyond if not less or number > max(less))
            other = their_name if name == our_name else our_name
            return f"operation {first}: {name} runs {more[first]}, {other} does not"
    return f"{our_name} and {their_name} parted more than {_KEPT} operations ago, or began with other settings"


def _parse(history: bytes) -> dict[int, str]:
    found: dict[int, str] = {}
    for line in history.decode("utf-8", "replace").split("\n"):
        number, _, text = line.partition(" ")
        if number.isascii() and number.isdigit() and len(number) < 20:
            found[int(number)] = "".join(c if c.isprintable() else " " for c in text[:_LINE])
    return found


def shapes(*operands: Sequence[int]) -> str:
    """Shapes as an operation's facts: ``2x3,3x4``."""
    return ",".join("x".join(map(str, shape)) or "scalar" for shape in operands)


def broadcast(name: str, *operands: Sequence[int]) -> tuple[int, ...]:
    """The common shape of operands, as NumPy broadcasts them. Raises UsageError if there is none."""
    try:
        return np.broadcast_shapes(*map(tuple, operands))
    except ValueError:
        got = " and ".join(str(tuple(shape)) for shape in operands)
        raise UsageError(f"{name}: got shapes {got}, wanted some that broadcast") from None
