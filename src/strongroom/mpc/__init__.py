"""Computing on secrets: two servers that do not collude, and a dealer that never sees data.

- `share`, `own` and `reveal`, in a `World` or a `local_world`: secrets that unmodified PyTorch modules compute on.
- `Party` and what takes a `Shared` are the protocols beneath. Start with `party.py`, whose rules everything keeps, then
  `shared.py` and any file of `protocols`.

Each name is imported when it is first used: all need torch, this package does not.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from strongroom.errors import MissingDependencyError

if TYPE_CHECKING:
    from strongroom.mpc.connect import join_tcp, join_unix
    from strongroom.mpc.functions.activation import gelu, sigmoid, silu, softmax
    from strongroom.mpc.functions.division import reciprocal, rsqrt
    from strongroom.mpc.functions.exponential import exp
    from strongroom.mpc.functions.normalisation import layer_norm, rms_norm
    from strongroom.mpc.local import run_local
    from strongroom.mpc.party import DEALER, P0, P1, Party
    from strongroom.mpc.protocols.compare import amax, argmax, is_negative, less, maximum
    from strongroom.mpc.protocols.linear import conv1d, conv2d, conv_transpose2d, matmul, multiply
    from strongroom.mpc.protocols.owned import Owned, conv2d_owned, matmul_owned
    from strongroom.mpc.protocols.pool import absolute, clamp, max_pool2d
    from strongroom.mpc.protocols.relu import relu
    from strongroom.mpc.protocols.truncate import truncate
    from strongroom.mpc.ring import Convolution, Settings, Transposed
    from strongroom.mpc.shared import Shared, concatenate
    from strongroom.mpc.tensor.shared_tensor import SharedTensor
    from strongroom.mpc.tensor.sharing import own, reveal, share
    from strongroom.mpc.tensor.world import Reveal, Withheld, World, local_world

_NAMES = {
    "connect": "join_tcp join_unix",
    "functions.activation": "gelu sigmoid silu softmax",
    "functions.division": "reciprocal rsqrt",
    "functions.exponential": "exp",
    "functions.normalisation": "layer_norm rms_norm",
    "local": "run_local",
    "party": "DEALER P0 P1 Party",
    "protocols.compare": "amax argmax is_negative less maximum",
    "protocols.linear": "conv1d conv2d conv_transpose2d matmul multiply",
    "protocols.owned": "Owned conv2d_owned matmul_owned",
    "protocols.pool": "absolute clamp max_pool2d",
    "protocols.relu": "relu",
    "protocols.truncate": "truncate",
    "ring": "Convolution Settings Transposed",
    "shared": "Shared concatenate",
    "tensor.shared_tensor": "SharedTensor",
    "tensor.sharing": "own reveal share",
    "tensor.world": "Reveal Withheld World local_world",
}
_HOMES = {name: f"strongroom.mpc.{home}" for home, names in _NAMES.items() for name in names.split()}

__all__ = [
    "DEALER",
    "P0",
    "P1",
    "Convolution",
    "Owned",
    "Party",
    "Reveal",
    "Settings",
    "Shared",
    "SharedTensor",
    "Transposed",
    "Withheld",
    "World",
    "absolute",
    "amax",
    "argmax",
    "clamp",
    "concatenate",
    "conv1d",
    "conv2d",
    "conv2d_owned",
    "conv_transpose2d",
    "exp",
    "gelu",
    "is_negative",
    "join_tcp",
    "join_unix",
    "layer_norm",
    "less",
    "local_world",
    "matmul",
    "matmul_owned",
    "max_pool2d",
    "maximum",
    "multiply",
    "own",
    "reciprocal",
    "relu",
    "reveal",
    "rms_norm",
    "rsqrt",
    "run_local",
    "share",
    "sigmoid",
    "silu",
    "softmax",
    "truncate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'strongroom.mpc' has no attribute {name!r}")
    if find_spec("torch") is None:
        raise MissingDependencyError("torch: is not installed", hint="pip install 'strongroom[torch]'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
