"""One commit over several ranks: each mirrors its part, and the step counts on all of them or on none.

Steps of a commit:

1. Every rank commits its part to its own mirror, which keeps the commit before.
2. All tell all whether that worked, and the root.
3. Rank 0 commits a record, {step, number of ranks, roots}, to a mirror of its own: that is the commit.
4. All hear that it is there. Only then is anything older given up, by the next commit.

After a crash anywhere, every rank restores the recorded step: it is the newest of its mirror or the one before. No
rank is ahead by two, since step 1 of the next commit comes after step 4 of this one.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from strongroom.errors import ChannelError, RollbackError, StrongroomError, UsageError
from strongroom.mirror.commit import Commit
from strongroom.mirror.mirror import Mirror
from strongroom.mirror.region import Region
from strongroom.mirror.restored import Restored
from strongroom.sealed import Root
from strongroom.storage import is_full

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_NUMBER: Final = struct.Struct("<Q")
_MAX_NUMBER: Final = (1 << 64) - 1
_WORD: Final = struct.Struct("<BqQ32s")  # how it went, step, sequence, digest
_FAILED, _WORKED, _FULL = 0, 1, 2
_MAX_RANKS: Final = 1 << 16


class Ranks(Protocol):
    """The processes that train together."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    def gather(self, data: bytes) -> list[bytes]:
        """What every rank gave, in order; all give as many bytes. Raises an error if one of them is gone."""


class RankedMirror:
    """A mirror whose commits are those of all ranks. Use it in place of a `Mirror`.

    Every rank makes the same calls in the same order.

    Args:
        part: of this rank: a path of its own, ``keep`` at least 2.
        record: on rank 0 the mirror for the records, on others None. Its anchor is what makes the whole fresh.
        ranks: what joins them.

    Raises:
        UsageError: as said.
    """

    def __init__(self, part: Mirror, record: Mirror | None, ranks: Ranks) -> None:
        if part.keep < 2:
            raise UsageError(f"keep: {part.keep} commits, wanted at least 2 on each of several ranks")
        if (record is not None) != (ranks.rank == 0):
            raise UsageError("record: wanted a mirror on rank 0, and None on others")
        if not 1 <= ranks.count <= _MAX_RANKS:
            raise UsageError(f"ranks: {ranks.count}, wanted 1 to {_MAX_RANKS}")
        self._part = part
        self._record = record
        self._ranks = ranks
        self._step: int | None = None

    @property
    def step(self) -> int | None:
        """The step of the newest commit that this object made or restored."""
        return self._step

    def commit(self, step: int, state: Mapping[str, object]) -> Commit:
        """Commit on all ranks, or raise on all of them.

        Where a disk is full, mirrors that only warn of it warn on all ranks, and the commit before stays the newest.

        Raises:
            OSError, StrongroomError: this rank failed. Its mirror is back at the commit before.
            ChannelError: another one did, or is gone.
        """
        # A commit that failed may be on the disk or not. What a record may name, and what the newest names, must stay.
        ready = not self._part.failed and (self._record is None or not self._record.failed)
        if any(how != _WORKED for how, _, _ in self._tell(_WORKED if ready else _FAILED, step, None)):
            raise StrongroomError(
                "mirror: an earlier commit or record failed, so this opening commits no more", hint="open it again"
            )
        commit: Commit | None = None
        failure: BaseException | None = None
        root: Root | None = None
        try:
            commit = self._part.commit(step, state)
            root = commit.durable()
        except (OSError, StrongroomError) as error:
            failure = error
        heard = self._tell(_how(failure, commit), step, root)
        failed = [rank for rank, (how, other, _) in enumerate(heard) if how != _WORKED or other != step]
        if not failed and self._record is not None:
            roots = [str(found) for _, _, found in heard]
            try:
                self._record.commit(step, {"ranks": self._ranks.count, "roots": roots}).durable()
            except (OSError, StrongroomError) as error:
                failure = error
        decided = self._tell(_FAILED if failure is not None or failed else _WORKED, step, None)[0][0]
        if commit is not None and decided == _WORKED:
            self._step = step
            return commit
        self._undo(step)
        if failed and commit is not None and all(heard[rank][0] == _FULL for rank in failed):
            if root is not None:
                self._part.warn(step, f"no room on rank {', '.join(map(str, failed))}")
            return commit
        if failure is not None:
            raise failure
        who = ", ".join(map(str, failed)) or "0"
        raise ChannelError(f"commit of step {step}: rank {who} failed, so it was made on none")

    def _undo(self, step: int) -> None:
        if self._part.step == step and not self._part.failed:
            if self._step is None:
                self._part.forget()
            else:
                restored = self._part.restore(self._step)
                if restored is not None:
                    restored.close()

    def _tell(self, how: int, step: int, root: Root | None) -> list[tuple[int, int, Root | None]]:
        word = _WORD.pack(how, step, root.sequence if root else 0, root.digest if root else bytes(32))
        heard = []
        for rank, said in enumerate(self._ranks.gather(word)):
            if len(said) != _WORD.size:
                raise ChannelError(f"rank {rank}: said {len(said)} bytes, wanted {_WORD.size}")
            theirs, other, sequence, digest = _WORD.unpack(said)
            heard.append((theirs, other, Root(sequence, digest) if sequence else None))
        return heard

    def most(self, number: int) -> int:
        """The highest of the numbers, from 0 up, that the ranks call this with. Raises ChannelError if one is gone."""
        heard = self._ranks.gather(_NUMBER.pack(min(number, _MAX_NUMBER)))
        if any(len(said) != _NUMBER.size for said in heard):
            raise ChannelError(f"ranks: said {[len(said) for said in heard]} bytes, wanted {_NUMBER.size} each")
        return max(int(_NUMBER.unpack(said)[0]) for said in heard)

    def restore(self, step: int | None = None) -> Restored | None:
        """This rank's part of the newest commit of all, or of an older one; None if there is none.

        Raises:
            UsageError: that step is not kept, or it was made by another number of ranks.
            RollbackError: this rank's part is not what the record says.
            ChannelError: another rank failed.
        """
        found, failure = None, None
        root: Root | None = None
        roots: list[Root] = []
        try:
            if self._record is not None and (record := self._record.restore(step)) is not None:
                with record:
                    found = record.step
                    roots = [Root.parse(text) for text in record["roots"]]
                    if record["ranks"] != self._ranks.count or len(roots) != self._ranks.count:
                        raise UsageError(
                            f"ranks: {self._ranks.count}, and step {found} was committed by {record['ranks']}",
                            hint="start as many, or begin anew",
                        )
        except (OSError, StrongroomError) as error:
            failure = error
        how, recorded, _ = self._tell(_how(failure), -1 if found is None else found, None)[0]
        if failure is not None:
            raise failure
        if how != _WORKED:
            raise ChannelError("restore: rank 0 has no record to restore from, see what it said")
        # What each rank's root must be, from rank 0: in as many rounds as there are ranks, as all give as much.
        for rank in range(self._ranks.count):
            said = self._tell(_WORKED, recorded, roots[rank] if roots else None)[0][2]
            root = said if rank == self._ranks.rank else root
        if recorded < 0:
            if self._part.step is not None:
                self._part.forget()  # a commit that was never decided
            return None
        restored = None
        try:
            restored = self._part.restore(recorded)
            if restored is None or root is None or restored.root is None or restored.root.version != root.version:
                raise RollbackError(
                    f"rank {self._ranks.rank}: its part of step {recorded} is another than the record says",
                    hint="it belongs to another run; restore it from a copy",
                )
        except (OSError, StrongroomError) as error:
            failure = error
        heard = self._tell(_how(failure), recorded, None)
        if failure is not None:
            raise failure
        if failed := [rank for rank, (ok, _, _) in enumerate(heard) if ok != _WORKED]:
            raise ChannelError(f"restore: rank {', '.join(map(str, failed))} cannot restore step {recorded}")
        self._step = recorded
        return restored

    @property
    def region(self) -> Region:
        """What this rank's part rests on."""
        return self._part.region

    def close(self) -> None:
        """Close both mirrors. Closing twice is fine."""
        try:
            self._part.close()
        finally:
            if self._record is not None:
                self._record.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._part.__exit__(kind, error, trace)
        if self._record is not None:
            self._record.__exit__(kind, error, trace)


def _how(failure: BaseException | None, commit: Commit | None = None) -> int:
    if failure is None:
        return _WORKED
    # A mirror that raises for a full disk gives no commit.
    return _FULL if commit is not None and isinstance(failure, OSError) and is_full(failure) else _FAILED
