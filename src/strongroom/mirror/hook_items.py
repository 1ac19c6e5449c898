"""What a loop goes over: whether it can be wound on, and whether its items must be made for that."""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _SingleProcessDataLoaderIter

_COUNTED: Final[tuple[type, ...]] = (
    type(iter([])),
    type(iter(())),
    type(iter(range(0))),
    type(iter({})),
    type(iter({}.items())),
    type(iter({}.values())),
    type(iter(set())),
    type(iter("")),
)


def draws_in_the_beginning(inner: Any, items: Any) -> bool:
    """Whether an iterator is known to draw what decides on its items when it is made, or not at all."""
    if isinstance(inner, (_BaseDataLoaderIter, *_COUNTED)):
        return True
    if type(inner) in (enumerate, zip):
        found = inner.__reduce__()[1]
        return all(draws_in_the_beginning(one, None) for one in (found[:1] if type(inner) is enumerate else found))
    if type(items).__module__.partition(".")[0] == "tqdm":
        beneath = getattr(items, "iterable", None)
        if type(beneath) in (enumerate, zip):
            return draws_in_the_beginning(beneath, None)
        return isinstance(beneath, (DataLoader, range, list, tuple))
    return False


def fingerprint() -> tuple[Any, ...]:
    """Of the global random generators, in CPU memory."""
    numpy = np.random.get_state(legacy=False)["state"]
    return random.getstate(), int(numpy["pos"]), numpy["key"][:2].tobytes(), torch.get_rng_state().numpy().tobytes()


def passes_on(inner: Any, items: Any) -> bool:
    """Whether an iterator hands a loader's batches on as they are: to be passed over they need not be loaded then."""
    if isinstance(items, DataLoader):
        return isinstance(inner, _SingleProcessDataLoaderIter)
    if type(items) is enumerate:
        beneath = items.__reduce__()[1][0]
        return isinstance(beneath, _SingleProcessDataLoaderIter)
    return False
