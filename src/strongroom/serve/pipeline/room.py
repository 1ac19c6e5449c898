"""How large a request may be: what the plan is for, and as many times that as its enclaves have room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strongroom.errors import TooLargeError
from strongroom.serve.tensors import Array, TensorInfo


@dataclass(frozen=True)
class OpenSize:
    """A size of the inputs that the model leaves open.

    Attributes:
        at: where it is: numbers of an input, and of a size of it, from 0.
        planned: what the plan is for.
        power: of it that tensors grow with: 2 where they are as large as its square, as attention's.
    """

    at: tuple[tuple[int, int], ...]
    planned: int
    power: int = 1

    @property
    def rows(self) -> bool:
        """Whether it is the first size of an input."""
        return any(axis == 0 for _, axis in self.at)


def require_room(
    infos: Sequence[TensorInfo],
    sizes: Sequence[OpenSize],
    times: int,
    inputs: Mapping[str, Array],
    *,
    any_rows: bool = False,
) -> None:
    """Pass inputs for whose tensors there is memory.

    Args:
        infos: of the inputs, which fit them.
        times: how many times what is planned there is memory for.
        any_rows: rows do not count, since they go through the parts few by few.

    Raises:
        TooLargeError: there is not.
    """
    more, than = 1, times
    for each in sizes:
        if any_rows and each.rows:
            continue
        got = max(inputs[infos[number].name].shape[axis] for number, axis in each.at)
        more, than = more * max(got, each.planned) ** each.power, than * each.planned**each.power
    if more <= than:
        return
    planned = {place: each.planned for each in sizes for place in each.at}
    got, wanted = [], []
    for number, info in enumerate(infos):
        got.append(str(list(inputs[info.name].shape)))
        wanted.append(str([planned.get((number, axis), size) for axis, size in enumerate(info.shape)]))
    raise TooLargeError(
        f"inputs: got {', '.join(got)}, the plan is for {', '.join(wanted)} in enclaves with room for the tensors of "
        f"{'that' if times == 1 else f'{times} times that'}",
        hint="send fewer rows at once; plan with --batch for more rows, with --dim for other sizes",
    )
