"""A script that begins again proves that the mirror holds all of its state: it repeats the steps between two commits.

It goes on from the commit before the newest, and when it comes to the newest one's place, what it would commit there is
compared with what was committed. State that the mirror does not hold, such as that of objects of libraries, is then
what it was when the script began, and shows if it had a part in any number of these steps.

- Strictly, bit for bit: modules, optimizers, schedulers, scalers, gradients, random generators, the place, and arrays,
  tensors and the shape of containers in variables.
- Plain values in variables may differ, and are named: times and numbers of processes do so in scripts that are sound.
- A variable or an attribute that is there now only comes of the pass that was done over to catch up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from strongroom.errors import UsageError
from strongroom.mirror.restored import Restored
from strongroom.mirror.state import decode, encode, numpy_type

UNPROVED: Final = "unproved"  # the value of Python's option -Xmirror

_SHOWN: Final = 5  # differences in a message
_LONGEST: Final = 80  # characters of a path in it
_NUMBERED: Final = frozenset("tnwgdlqszofk")  # of `hook_variables`: a number follows
_ARRAYS: Final = frozenset({"t", "n", "w"})
_PLAIN: Final = frozenset({"v", "c"})
_MISSING: Final[Any] = object()
_HINT: Final = (
    "keep such state in variables, modules or attributes of the script's own classes; see 'How a resume is proved' in "
    f"docs/how-to/mirror-run.md. python -Xmirror={UNPROVED} goes on without the proof"
)


class _Held:
    """An array of a commit, which is read when it is wanted, or one of now."""

    def __init__(
        self, kind: str, dtype: str, shape: tuple[int, ...], read: Callable[[], npt.NDArray[np.uint8]]
    ) -> None:
        self._type = (kind, dtype, shape)
        self.bytes = read

    def equals(self, other: _Held) -> bool:
        return self._type == other._type and np.array_equal(self.bytes(), other.bytes())


def _flat(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class Proof:
    """What a commit holds, for a state that should be the same.

    Args:
        newest: the commit; nothing may be committed to its mirror before `check`.
        since: the step that the script goes on from.

    Attributes:
        step: of the commit.
    """

    def __init__(self, newest: Restored, since: int) -> None:
        self._newest = newest
        self.since = since
        self.step = newest.step

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """The variables whose plain values are not those of the commit.

        Raises:
            UsageError: something else of the state is another.
            IntegrityError: a block of the commit is not what was committed.
        """
        was, now = self._newest.manifest.values, encode(state)
        entries = self._newest.manifest.layout.entries
        # Part by part: arrays are read one at a time.
        parts_now = dict(now[0]["d"])
        comparison = _Comparison()

        def held(kind: str, index: int) -> _Held:
            entry = entries[index]
            read = functools.partial(self._newest.array, entry.name)
            return _Held(kind, entry.dtype, tuple(entry.shape), lambda: _flat(read()))

        def mine(kind: str, index: int) -> _Held:
            array = now[1][index][1]
            data = np.frombuffer(array.data, np.uint8) if memoryview(array.data).nbytes else np.empty(0, np.uint8)
            return _Held(kind, array.dtype, tuple(array.shape), lambda: data)

        for name, raw in was["d"]:
            then = decode(raw, held)
            same = decode(parts_now[name], mine) if name in parts_now else _MISSING
            if name == "place":
                comparison.place(then, same)
            elif name == "program":
                comparison.program(then, same)
            elif name == "random":
                comparison.drawn(then, same, name)
            elif name == "parts":
                comparison.mapping(then, same, "")
            else:
                comparison.value(then, same, name)
        if comparison.differs:
            raise self._refusal([*comparison.differs, *comparison.apart])
        return comparison.apart

    def _refusal(self, found: list[str]) -> UsageError:
        shown = ", ".join(one[:_LONGEST] for one in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return UsageError(
            f"mirror: step {self.step} cannot be gone on from: repeated from step {self.since}, it is another in "
            f"{shown}{more}; the script holds state that the mirror does not capture, or is not deterministic; nothing "
            f"is sealed, and the mirror is as it was",
            hint=_HINT,
        )


class _Side:
    """The variables of one state: objects by the numbers that they were met under, and memory that arrays share."""

    def __init__(self, program: Mapping[str, Any]) -> None:
        self._memory = program.get("memory", [])
        self._numbered: dict[int, Any] = {}
        left: list[Any] = [program]
        while left:
            one = left.pop()
            if isinstance(one, dict):
                left.extend(one.values())
            elif isinstance(one, (list, tuple)):
                if len(one) > 1 and type(one[1]) is int and isinstance(one[0], str) and one[0] in _NUMBERED:
                    self._numbered[one[1]] = one
                left.extend(one)

    def found(self, taken: Any) -> Any:
        """What was met before under that number, or itself."""
        return self._numbered.get(taken[1], taken) if taken[0] == "same" else taken

    def array(self, taken: Any) -> tuple[_Held | None, bool]:
        """An array by itself, and whether it is a leaf that wants gradients; None for a view of a parameter's memory
        or of data that have not changed."""
        if taken[0] != "w":
            return taken[2], len(taken) > 3 and taken[3]
        _, _, (base, index), library, dtype, shape, strides, offset, leaf = taken
        if base != "memory":
            return None, leaf

        def read() -> npt.NDArray[np.uint8]:
            memory = self._memory[index].bytes()
            return _flat(np.ndarray(tuple(shape), numpy_type(dtype), memory, offset, tuple(strides)))

        return _Held(library, dtype, tuple(shape), read), leaf


class _Comparison:
    """One walk over two states."""

    def __init__(self) -> None:
        self.differs: list[str] = []
        self.apart: list[str] = []  # plain values of variables
        self._of: tuple[_Side, _Side] = (_Side({}), _Side({}))
        self._seen: set[tuple[int, int]] = set()  # objects that were compared, as often as they are met

    def value(self, was: Any, now: Any, path: str) -> None:
        if isinstance(was, _Held) and isinstance(now, _Held):
            same = was.equals(now)
        elif type(was) is not type(now):
            same = False
        elif isinstance(was, dict):
            self.mapping(was, now, f"{path}/")
            return
        elif isinstance(was, (list, tuple)):
            if same := len(was) == len(now):
                for i, (one, other) in enumerate(zip(was, now, strict=True)):
                    self.value(one, other, f"{path}/{i}")
        else:
            same = _same(was, now)
        if not same:
            self.differs.append(path)

    def mapping(self, was: Any, now: Any, path: str) -> None:
        """With other keys only where `value` says nothing of them: in what order they stand does not matter."""
        if not isinstance(now, dict):
            self.differs.append(path.rstrip("/") or "parts")
            return
        for key in dict.fromkeys([*was, *now]):
            if key in was and key in now:
                self.value(was[key], now[key], f"{path}{key}")
            else:
                self.differs.append(f"{path}{key}")

    def place(self, was: Any, now: Any) -> None:
        loops, others = was["loops"], now["loops"]
        if [_counts(one) for one in loops] != [_counts(one) for one in others]:
            self.differs.append("place")
            return
        for one, other in zip(loops, others, strict=True):
            for when in ("began", "passing"):
                if one[when] is not None and other[when] is not None:
                    self.drawn(one[when], other[when], f"random generators/{when} {one['site']}")

    def drawn(self, was: Any, now: Any, path: str) -> None:
        """Random generators; one that is no longer there, or there already, is a variable like others."""
        self.value(was["global"], now["global"], path)
        for name in was["own"].keys() & now["own"].keys():
            self.value(was["own"][name], now["own"][name], f"{path}/{name}")

    # Variables, as `hook_variables` takes them down.

    def program(self, was: Any, now: Any) -> None:
        self._of = (_Side(was), _Side(now))
        for place in dict.fromkeys([*was, *now]):
            kind, _, name = place.partition(" ")
            shown = name if kind == "module" else name.partition(" ")[2]
            if place not in was or place not in now:
                self.differs.append(f"{kind} {shown}".strip())
            elif place == "modules":
                self._modules(was[place], now[place])
            elif place == "loaders":
                self._elements([("u", one) for one in was[place]], [("u", one) for one in now[place]], "loader")
            elif place != "memory":
                self._named(was[place], now[place], f"variable {shown}.")

    def _modules(self, was: Any, now: Any) -> None:
        if [one[:-1] for one in was] != [one[:-1] for one in now]:
            self.differs.append("modules")
            return
        for i, (one, other) in enumerate(zip(was, now, strict=True)):
            self._named(one[-1], other[-1], f"module {i}.")

    def _named(self, was: Any, now: Any, path: str) -> None:
        for name in was:
            if name in now:
                self._taken(was[name], now[name], f"{path}{name}")
            elif was[name][0] != "-":
                self.differs.append(f"{path}{name}")

    def _taken(self, was: Any, now: Any, path: str) -> None:
        # Whether two names are of one object is not compared, but what they hold: a loop over what was there before
        # gives objects of its own, beside those that were put back.
        was, now = self._of[0].found(was), self._of[1].found(now)
        tag = was[0]
        if tag in _NUMBERED:
            if (id(was), id(now)) in self._seen:
                return
            self._seen.add((id(was), id(now)))
        if tag in _ARRAYS and now[0] in _ARRAYS:
            (mine, leaf), (its, other) = self._of[0].array(was), self._of[1].array(now)
            if mine is not None and its is not None:
                if leaf != other or not mine.equals(its):
                    self.differs.append(path)
                return
        if now[0] != tag or len(now) != len(was):
            (self.apart if tag in _PLAIN and now[0] in _PLAIN else self.differs).append(path)
            return
        match tag:
            case "v" | "c":
                if not all(map(_same, was[1:], now[1:])):
                    self.apart.append(path)
            case "s" | "z":
                self.value(was[2:-1], now[2:-1], path)
                if sorted(map(_word, was[-1])) != sorted(map(_word, now[-1])):
                    self.differs.append(path)
            case "d":
                self._how(was[2], now[2], path)
                self._entries(was[-1], now[-1], path)
            case "l" | "q":
                self._how(was[2], now[2], path)
                self._elements(was[-1], now[-1], path)
            case "u" | "y":
                self.value(was[1:-1], now[1:-1], path)
                self._elements(was[-1], now[-1], path)
            case "o" | "f":
                self.value(was[2:-1], now[2:-1], path)
                self._named(was[-1], now[-1], f"{path}.")
            case "m":
                self._taken(was[1], now[1], path)
                self.value(was[2:], now[2:], path)
            case _:
                self.value(was[1 + (tag in _NUMBERED) :], now[1 + (tag in _NUMBERED) :], path)

    def _how(self, was: Any, now: Any, path: str) -> None:
        """Of what class a container is, and its own attributes."""
        self._named(was.get("own", {}), now.get("own", {}), f"{path}.")
        self.value({**was, "own": None}, {**now, "own": None}, path)

    def _elements(self, was: Any, now: Any, path: str) -> None:
        if len(was) != len(now):
            self.differs.append(path)
            return
        for i, (one, other) in enumerate(zip(was, now, strict=True)):
            self._taken(one, other, f"{path}[{i}]")

    def _entries(self, was: Any, now: Any, path: str) -> None:
        mine, its = ({_word(key): value for key, value in pairs} for pairs in (was, now))
        if mine.keys() != its.keys():
            self.differs.append(path)
            return
        for key in mine:
            self._taken(mine[key], its[key], f"{path}[{key}]")


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, _Held) or isinstance(now, _Held):
        return isinstance(was, _Held) and isinstance(now, _Held) and was.equals(now)
    return type(was) is type(now) and (was == now or (was != was and now != now))


def _counts(loop: Mapping[str, Any]) -> tuple[Any, ...]:
    return loop["site"], loop["ordinal"], loop["given"]


def _word(value: Any) -> str:
    """A key or an element of a set in words, whatever the order and the numbers that its parts were met under."""
    match value[0]:
        case "v":
            return repr(value[1].bytes().tobytes() if isinstance(value[1], _Held) else value[1])
        case "u" | "y":
            return f"({', '.join(map(_word, value[-1]))})"
        case "s" | "z":
            return f"{{{', '.join(sorted(map(_word, value[-1])))}}}"
        case "c" | "e" | "p" | "r":
            return repr(value)
    return str(value[0])
