"""What PyTorch's operators become, one file for each kind.

Start with `registry.py`. Importing this package registers all of them.
"""

from strongroom.mpc.tensor.operators import (
    apart,
    arithmetic,
    arrange,
    attention,
    axes,
    choice,
    convolution,
    functions,
    images,
    indices,
    losses,
    norms,
    places,
    pooling,
    recurrent,
)
from strongroom.mpc.tensor.operators.registry import write_in_place

__all__ = [
    "apart",
    "arithmetic",
    "arrange",
    "attention",
    "axes",
    "choice",
    "convolution",
    "functions",
    "images",
    "indices",
    "losses",
    "norms",
    "places",
    "pooling",
    "recurrent",
]

write_in_place()
