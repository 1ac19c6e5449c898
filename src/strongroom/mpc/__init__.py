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
    from strongroom.mpc.client import Client
    from strongroom.mpc.connect import join_tcp, join_unix
    from strongroom.mpc.costs.debug import debug
    from strongroom.mpc.costs.figures import Figures
    from strongroom.mpc.costs.network import LAN, LOOPBACK, WAN, Network
    from strongroom.mpc.costs.predict import Cost, cost
    from strongroom.mpc.costs.profile import Profile, profile
    from strongroom.mpc.costs.trace import merge_traces
    from strongroom.mpc.functions.activation import gelu, sigmoid, silu, softmax
    from strongroom.mpc.functions.division import reciprocal, rsqrt
    from strongroom.mpc.functions.exponential import exp
    from strongroom.mpc.functions.normalisation import layer_norm, rms_norm
    from strongroom.mpc.imports.load import load_architecture, load_model, save_architecture
    from strongroom.mpc.party import DEALER, P0, P1, D, Party
    from strongroom.mpc.policy import Allow, Policy, Reveal
    from strongroom.mpc.protocols.compare import amax, argmax, is_negative, less, maximum
    from strongroom.mpc.protocols.linear import conv1d, conv2d, conv_transpose2d, matmul, multiply
    from strongroom.mpc.protocols.owned import Owned, conv2d_owned, matmul_owned
    from strongroom.mpc.protocols.pool import absolute, clamp, max_pool2d
    from strongroom.mpc.protocols.relu import relu
    from strongroom.mpc.protocols.truncate import truncate
    from strongroom.mpc.reception import Reception
    from strongroom.mpc.ring import Convolution, Settings, Transposed
    from strongroom.mpc.shared import Shared, concatenate
    from strongroom.mpc.tensor.notebook import local
    from strongroom.mpc.tensor.serving import requests, serve
    from strongroom.mpc.tensor.shared_tensor import SharedTensor
    from strongroom.mpc.tensor.sharing import own, reveal, share
    from strongroom.mpc.tensor.together import local_world
    from strongroom.mpc.tensor.withheld import Withheld
    from strongroom.mpc.tensor.world import World
    from strongroom.mpc.threads import run_local

_NAMES = {
    "client": "Client",
    "connect": "join_tcp join_unix",
    "costs.debug": "debug",
    "costs.figures": "Figures",
    "costs.network": "LAN LOOPBACK WAN Network",
    "costs.predict": "Cost cost",
    "costs.profile": "Profile profile",
    "costs.trace": "merge_traces",
    "functions.activation": "gelu sigmoid silu softmax",
    "functions.division": "reciprocal rsqrt",
    "functions.exponential": "exp",
    "functions.normalisation": "layer_norm rms_norm",
    "imports.load": "load_architecture load_model save_architecture",
    "party": "D DEALER P0 P1 Party",
    "policy": "Allow Policy Reveal",
    "protocols.compare": "amax argmax is_negative less maximum",
    "protocols.linear": "conv1d conv2d conv_transpose2d matmul multiply",
    "protocols.owned": "Owned conv2d_owned matmul_owned",
    "protocols.pool": "absolute clamp max_pool2d",
    "protocols.relu": "relu",
    "protocols.truncate": "truncate",
    "reception": "Reception",
    "ring": "Convolution Settings Transposed",
    "shared": "Shared concatenate",
    "tensor.serving": "requests serve",
    "tensor.shared_tensor": "SharedTensor",
    "tensor.sharing": "own reveal share",
    "tensor.notebook": "local",
    "tensor.together": "local_world",
    "tensor.withheld": "Withheld",
    "tensor.world": "World",
    "threads": "run_local",
}
_HOMES = {name: f"strongroom.mpc.{home}" for home, names in _NAMES.items() for name in names.split()}

__all__ = [
    "DEALER",
    "LAN",
    "LOOPBACK",
    "P0",
    "P1",
    "WAN",
    "Allow",
    "Client",
    "Convolution",
    "Cost",
    "D",
    "Figures",
    "Network",
    "Owned",
    "Party",
    "Policy",
    "Profile",
    "Reception",
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
    "cost",
    "debug",
    "exp",
    "gelu",
    "is_negative",
    "join_tcp",
    "join_unix",
    "layer_norm",
    "less",
    "load_architecture",
    "load_model",
    "local",
    "local_world",
    "matmul",
    "matmul_owned",
    "max_pool2d",
    "maximum",
    "merge_traces",
    "multiply",
    "own",
    "profile",
    "reciprocal",
    "relu",
    "requests",
    "reveal",
    "rms_norm",
    "rsqrt",
    "run_local",
    "save_architecture",
    "serve",
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
        raise MissingDependencyError("torch: is not installed", hint="pip install 'strongroom[mpc]'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
