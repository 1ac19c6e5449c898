"""Running a table of functions on secrets, all in one world, beside the same functions in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from strongroom import mpc
from strongroom.mpc import Settings

Function = Callable[..., Any]


def shared(values: torch.Tensor, classes: int | None = None) -> Any:
    """A secret of P0."""
    if classes is not None:
        return mpc.share(lambda: values, source=0, shape=values.shape, dtype=torch.int64, classes=classes)
    dtype = torch.bool if values.dtype == torch.bool else torch.float32
    return mpc.share(lambda: values, source=0, shape=values.shape, dtype=dtype)


def revealed(result: Any) -> Any:
    return [mpc.reveal(each, to=0) for each in (result if isinstance(result, tuple | list) else [result])]


def on_secrets(
    table: Mapping[str, tuple[Function, Sequence[torch.Tensor]]], settings: Settings | None = None
) -> dict[str, list[torch.Tensor]]:
    """What each function gave at P0, or what it raised."""

    def program() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (function, inputs) in table.items():
            try:
                found[name] = revealed(function(*map(shared, inputs)))
            except Exception as error:
                found[name] = error
        return found

    with mpc.local_world(settings) as world:
        return world.run(program)[0]


def in_the_clear(function: Function, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        result = function(*(each.double() if each.is_floating_point() else each for each in inputs))
    return list(result) if isinstance(result, tuple | list) else [result]
