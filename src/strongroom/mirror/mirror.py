"""The mirror of a training state: one sealed file, one commit a step, several of them kept.

Invariants:

- A commit is one of the sealed file's: after a crash at any instant, what restores is the last commit that was
  acknowledged, or the one that was under way, whole.
- What a commit holds is the state at the moment of the call: overlapped ones copy it before the call returns.
- At most one commit is under way. A failure of it is raised by the next call, and never taken for success.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from strongroom.errors import CasError, FormatError, IntegrityError, RollbackError, StrongroomError, UsageError
from strongroom.lineage.resumes import Resume, Resumes
from strongroom.mirror import region
from strongroom.mirror.commit import Commit, MirrorWarning
from strongroom.mirror.image import Bytes, Image, Pieces, put_rests, whole_blocks
from strongroom.mirror.manifest import MAX_STEP, Layout, Manifest, Wanted, arrange, unique
from strongroom.mirror.restored import Restored, read_manifest
from strongroom.mirror.state import encode
from strongroom.sealed import Anchor, NoFreshness, Root
from strongroom.sealed.file import SealedFile
from strongroom.sealed.layout import DEFAULT_BLOCK
from strongroom.sealed.opening import open_in
from strongroom.storage import Directory, is_full

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_logger = logging.getLogger("strongroom.mirror")


Mode = Literal["synchronous", "overlapped"]


class Mirror:
    """A mirror that is open for writing. Made by `open`; used by one thread at a time."""

    def __init__(
        self,
        directory: Directory,
        name: str,
        *,
        key: bytes,
        anchor: Anchor | NoFreshness,
        keep: int,
        mode: Mode,
        delta: bool,
        when_full: Literal["warn", "raise"],
        block_size: int,
        what: str,
        where: region.Region,
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._name = name
        self._key = key
        self._anchor = anchor
        self._keep = keep
        self._overlapped = mode == "overlapped"
        self._when_full = when_full
        self._what = what
        self._clock = clock
        self.region = where
        self.missed = 0  # commits left out since the last one that was made
        self._unnamed = False  # the file has its temporary name until its first commit
        self._file = self._open_or_create(block_size)
        self._manifest = read_manifest(self._file) if self._file.root else None
        self._kept: list[tuple[int, int]] = []  # (step, sequence) of what is retained, the oldest first
        if self._manifest and self._file.root:
            sequences = {root.sequence for root in self._file.retained}
            mine = (*self._manifest.kept, (self._manifest.step, self._file.root.sequence))
            self._kept = [one for one in mine if one[1] in sequences]
        self._layout = self._manifest.layout if self._manifest else None
        self._future_kept: list[tuple[int, int]] = []  # of steps behind the one that was restored
        self._went_back: int | None = None  # the version that was restored, if it is not the newest
        self._resume: Resume | None = None  # the return that the next commit follows
        self._image = Image(self._file, delta=delta)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mirror") if self._overlapped else None
        self._under_way: Commit | None = None
        self._changes = 0  # commits that were begun: from then on the file's content is on its way to another state
        self._unsure = False  # which commit the file is at, after one that failed
        self._undecided: Callable[[], None] | None = None  # takes on a commit that the anchor has not taken note of
        self._process = os.getpid()
        self._closed = False
        _open_mirrors.add(self)

    def _open_or_create(self, block_size: int) -> SealedFile:
        """The file, or a new one, whose name appears once it holds a commit: a crash leaves no half of one there."""
        new = self._name + ".new"
        names = self._directory.list()
        if self._name in names:
            return self._open_file("r+")
        if new in names:
            try:
                file = self._open_file("r+", name=new)
            except (FormatError, IntegrityError) as error:
                if self._is_anchored():
                    raise
                _logger.info("%s: %s, from a crash before the first commit: begins anew", self._what, error)
                self._directory.unlink(new)
            else:
                self._directory.rename(new, self._name)
                self._directory.sync()
                return file
        if self._is_anchored():
            raise RollbackError(
                f"{self._what}: is missing, and its anchor holds a commit",
                hint="restore it from a copy; to begin anew, use another anchor",
            )
        self._unnamed = True
        return self._open_file("x", block_size, name=new)

    def _is_anchored(self) -> bool:
        return not isinstance(self._anchor, NoFreshness) and self._anchor.read() is not None

    def _open_file(
        self, mode: Any, block_size: int = DEFAULT_BLOCK, *, name: str | None = None, at: int | None = None
    ) -> SealedFile:
        return open_in(
            self._directory,
            name or self._name,
            mode,
            self._key,
            self._anchor,
            block_size,
            what=self._what,
            at=at,
            cache=1 << 20,
        )

    # Looking.

    @property
    def step(self) -> int | None:
        """The step of the newest commit that is acknowledged; None before the first."""
        return self._manifest.step if self._manifest else None

    @property
    def root(self) -> Root | None:
        """The root of that commit."""
        return self._file.root

    @property
    def written(self) -> int:
        """Bytes of whole blocks that the last commit had to write: all, or with ``delta`` those that changed."""
        return self._image.written

    @property
    def keep(self) -> int:
        """How many commits can be restored, once there are as many."""
        return self._keep

    @property
    def failed(self) -> bool:
        """Whether the newest commit is in doubt: a write or sync failed, or the anchor has not taken note of it."""
        return self._unsure or self._undecided is not None

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, the oldest first."""
        kept = [step for step, _ in self._kept if self.step is None or step < self.step]
        return kept if self.step is None else [*kept, self.step]

    # Committing.

    @contextlib.contextmanager
    def begin(self, step: int) -> Iterator[Commit]:
        """A commit of `step`: ``with mirror.begin(step) as commit: commit["model"] = arrays``.

        It is made when the block ends, and not at all if that raises. A synchronous one is durable then; of an
        overlapped one a copy was taken, and `Commit.durable` waits for it.

        Args:
            step: above that of the commit before.

        Raises:
            UsageError: the step does not rise; a value that cannot be kept, by name.
            OSError: the disk failed, now or, overlapped, in the commit before. A full disk does so only if
                ``when_full="raise"``; else it is a `MirrorWarning`, and the commit before stays the newest.
            ConflictError: another writer, or another anchor than this mirror's.
        """
        self._settle()
        self._check(step)
        commit = Commit(step)
        yield commit
        self._make(commit)

    def commit(self, step: int, state: Mapping[str, object]) -> Commit:
        """As `begin`, in one call."""
        with self.begin(step) as commit:
            commit.update(state)
        return commit

    def _usable(self) -> None:
        if self._closed:
            raise ValueError(f"{self._what}: is closed")
        if self._process != os.getpid():
            raise UsageError(f"{self._what}: opened by the process that this one was forked from", hint="open it here")
        if self._unsure:
            raise StrongroomError(
                f"{self._what}: an earlier commit failed, so this opening commits no more", hint="open it again"
            )

    def _check(self, step: int) -> None:
        self._usable()
        newest = self.step
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= MAX_STEP:
            raise UsageError(f"step: {step!r}, wanted a number from 0 to 2^63 - 1")
        if newest is not None and step <= newest:
            raise UsageError(
                f"step: {step}, wanted one above {newest}", hint="restore() says where to go on; step=N goes back"
            )

    def _make(self, commit: Commit) -> None:
        self._changes += 1
        values, found = encode(commit._state)
        names = unique([path for path, _ in found])
        arrays = [array for _, array in found]
        wanted = [
            Wanted(name, array.kind, array.dtype, array.shape, memoryview(array.data).nbytes)
            for name, array in zip(names, arrays, strict=True)
        ]
        layout = arrange(wanted, self._file.block_size, self._layout)
        views = [
            np.frombuffer(array.data, np.uint8) if wanted[i].nbytes else _NOTHING for i, array in enumerate(arrays)
        ]
        waits = list(dict.fromkeys(array.ready for array in arrays if array.ready))
        if self._pool is None:
            for wait in waits:
                wait()
        pieces, tail = whole_blocks(layout, views), self._image.tail(layout, views)
        if self._pool is None:
            commit._future = Future()
            try:
                commit._future.set_result(self._seal(commit, layout, values, pieces, tail))
            except BaseException as error:
                commit._future.set_exception(error)
            self._settle_with(commit)
            return
        # What is still to come is the commit's own: it needs no copy, and what was read of it above is read again.
        late = [(entry, views[i]) for i, entry in enumerate(layout.entries) if arrays[i].ready]
        own = {entry.offset for entry, _ in late if entry.whole}
        copied = self._image.copy(layout, [one for one in pieces if one[0] not in own])
        pieces = [*copied, *(one for one in pieces if one[0] in own)]

        def seal() -> Root:
            # Whoever commits goes on first: else it waits for the interpreter as often as both want it.
            time.sleep(_GIVES_WAY)
            for wait in waits:
                wait()
            put_rests(tail, late)
            return self._seal(commit, layout, values, pieces, tail)

        commit._state = {}
        commit._future = self._pool.submit(seal)
        self._under_way = commit

    # In the thread that seals, or in the caller's own.

    def _seal(self, commit: Commit, layout: Layout, values: Any, pieces: Pieces, tail: Bytes) -> Root:
        self._decide()
        before = self._file.root
        try:
            return self._seal_now(commit, layout, values, pieces, tail)
        except BaseException:
            if self._undecided is not None:
                raise
            self._unsure = True
            # What was written of it must never be committed: not by the next commit, nor by closing. After a write or
            # a sync that failed even to look is wrong: what is seen may not be on the disk, and the anchor would move.
            with contextlib.suppress(OSError, StrongroomError):
                if not self._file.poisoned:
                    if before is not None:
                        self._file.reload()
                    self._unsure = self._file.root != before
            raise

    def _seal_now(self, commit: Commit, layout: Layout, values: Any, pieces: Pieces, tail: Bytes) -> Root:
        file = self._file
        self._image.write(layout, self._layout, pieces)
        kept = self._plan_kept()
        resumes = self._manifest.resumes if self._manifest else Resumes()
        if self._resume is not None:
            resumes = resumes.then(self._resume)
        manifest = Manifest(commit.step, float(self._clock()), layout, values, tuple(kept), resumes)
        end = b"".join((tail.data, manifest.to_bytes()))
        file.write_at(layout.area, end)
        file.truncate(layout.area + len(end))

        def adopt() -> None:
            assert file.root is not None  # noqa: S101  # it was committed
            if self._unnamed:
                self._directory.rename(self._name + ".new", self._name)
                self._directory.sync()
                self._unnamed = False
            self._manifest, self._layout = manifest, layout
            self._kept = [*kept, (commit.step, file.root.sequence)] if self._keep > 1 else []
            self._future_kept, self._went_back, self._resume = [], None, None
            self._image.committed(layout)

        before = file.root
        try:
            file.commit(retain=self._keep > 1)
        except (OSError, CasError) as error:
            if file.poisoned or file.root == before:
                raise
            self._undecided = adopt  # it is on the disk, and only the anchor does not know yet
            if not isinstance(error, CasError):
                raise
            self._decide(_PATIENCE)
        else:
            adopt()
        assert file.root is not None  # noqa: S101  # as above
        return file.root

    def _decide(self, patience: float = 0.0) -> None:
        """Tell the anchor once more of a commit that it did not take note of; from then on that is the newest.

        Args:
            patience: seconds for which it is asked again if it does not answer.

        Raises:
            OSError, CasError: it takes note of nothing now either.
        """
        if self._undecided is None:
            return
        until = time.monotonic() + patience
        while True:
            try:
                self._file.settle()
                break
            except CasError:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.1)
        adopt, self._undecided = self._undecided, None
        adopt()

    def _plan_kept(self) -> list[tuple[int, int]]:
        """What stays retained beside the commit that is being made; the rest is released with it."""
        retained = {root.sequence for root in self._file.retained}
        for _, sequence in self._future_kept:
            if sequence in retained:
                self._file.release(sequence)
                retained.discard(sequence)
        dead = {sequence for _, sequence in self._future_kept}
        kept = [one for one in self._kept if one[1] in retained and one[1] not in dead]
        for _, sequence in kept[: max(0, len(kept) - (self._keep - 1))]:
            self._file.release(sequence)
        return kept[max(0, len(kept) - (self._keep - 1)) :] if self._keep > 1 else []

    # What became of it.

    def _settle(self) -> None:
        """Wait for the commit under way; raises if it failed."""
        commit, self._under_way = self._under_way, None
        if commit is not None:
            self._settle_with(commit)

    def _settle_with(self, commit: Commit) -> None:
        assert commit._future is not None  # noqa: S101  # it was made
        error = commit._future.exception()
        if error is None:
            self.missed = 0
            return
        self.missed += 1
        self._image.forget()
        if isinstance(error, OSError) and is_full(error) and self._when_full == "warn" and not self._unsure:
            self.warn(commit.step, "no room")
            return
        if not commit._told:
            raise error

    def warn(self, step: int, why: str) -> None:
        """Say that the commit of a step was left out."""
        rest = "nothing restores yet" if self.step is None else f"step {self.step} stays the newest that restores"
        message = f"{self._what}: {why} for step {step}; {rest}"
        _logger.info("%s", message)
        warnings.warn(message, MirrorWarning, stacklevel=3)

    # Restoring.

    def restore(self, step: int | None = None) -> Restored | None:
        """The state of the newest commit, or of an older one that is kept; None if there is none yet.

        What is committed next follows the step restored: commits of later steps are then given up.

        Raises:
            UsageError: that step is not kept.
            IntegrityError: a block is not what was committed.
            RollbackError: what lies there is older than the anchor.
        """
        self._settle()
        self._usable()
        self._decide()
        if self._manifest is None:
            if step is not None:
                raise UsageError(f"step: {step}, and {self._what} has none yet")
            return None
        if step in (None, self.step):
            return self._resumed(self._restored_at(self._went_back))
        for kept, sequence in self._kept:
            if kept == step:
                restored = self._restored_at(sequence)
                self._go_back(restored.manifest, sequence)
                return self._resumed(restored)
        raise UsageError(f"step: {step} is not kept, wanted one of {', '.join(map(str, self.steps))}")

    def look(self, step: int) -> Restored:
        """The state of a commit that is kept, to be closed; what is committed next follows the newest all the same.

        Raises:
            as `restore`.
        """
        self._settle()
        self._usable()
        if step == self.step:
            return self._restored_at(self._went_back)
        for kept, sequence in self._kept:
            if kept == step:
                return self._restored_at(sequence)
        raise UsageError(f"step: {step} is not kept, wanted one of {', '.join(map(str, self.steps))}")

    def _resumed(self, restored: Restored) -> Restored:
        """Note the return, for the manifest of the commit that follows it, if one does."""
        self._resume = Resume.at(self._clock(), restored.step, restored.root)
        return restored

    def _restored_at(self, sequence: int | None) -> Restored:
        if sequence is None:
            assert self._manifest is not None  # noqa: S101  # there is a commit
            made = self._changes
            return Restored(self._file, self._manifest, owned=False, valid=lambda: self._changes == made)
        reader = self._open_file("r", at=sequence)
        try:
            return Restored(reader, read_manifest(reader), owned=True)
        except BaseException:
            reader.discard()
            raise

    def _go_back(self, manifest: Manifest, sequence: int) -> None:
        self._future_kept += [one for one in self._kept if one[0] > manifest.step]
        self._kept = [one for one in self._kept if one[0] <= manifest.step]
        self._manifest, self._went_back = manifest, sequence
        self._image.forget()

    def forget(self) -> None:
        """As if there were no commit yet: the next one may be of any step, and gives up all there are."""
        self._settle()
        self._future_kept += self._kept
        self._kept, self._manifest, self._went_back = [], None, None
        self._image.forget()

    # The end.

    def close(self) -> None:
        """Wait for the commit under way, and give back the file. Closing twice is fine.

        Raises:
            as the commit under way, if it failed.
        """
        if self._closed:
            return
        self._closed = True
        if self._process != os.getpid():
            return  # a forked child has given the file back already, and the thread that seals is its parent's
        try:
            self._settle()
        finally:
            if self._pool:
                self._pool.shutdown()
            try:
                if not self._unsure and self._file.root is not None:
                    self._decide()
                    self._file.close()
                    if isinstance(self._directory, region.LazyDirectory):
                        self._directory.flush()
            except OSError as error:
                if not is_full(error) or self._when_full == "raise":
                    raise
                warnings.warn(f"{self._what}: no room while it was closed", MirrorWarning, stacklevel=2)
            finally:
                self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(OSError, StrongroomError):  # the block's own exception says more
            self.close()

    def __repr__(self) -> str:
        return f"<Mirror {self._what!r} step={self.step}>"


_open_mirrors: weakref.WeakSet[Mirror] = weakref.WeakSet()


def _leave_to_parent() -> None:
    # Workers that load data outlive a training that is killed for seconds; it shall be started again at once.
    for mirror in list(_open_mirrors):
        mirror._file.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)

_PATIENCE: Final = 30.0  # seconds for an anchor that does not answer
_GIVES_WAY: Final = 0.0005  # seconds
_NOTHING: Final = np.empty(0, np.uint8)
