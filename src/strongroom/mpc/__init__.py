"""Computing on secrets: two servers that do not collude, and a dealer that never sees data.

Start with `party.py`, whose rules everything keeps, then `shared.py` and any file of `protocols`.
"""

from importlib.util import find_spec

from strongroom.errors import MissingDependencyError

if find_spec("torch") is None:
    raise MissingDependencyError("torch: is not installed", hint="pip install 'strongroom[torch]'")

from strongroom.mpc.connect import join_tcp, join_unix
from strongroom.mpc.functions.activation import gelu, sigmoid, silu, softmax
from strongroom.mpc.functions.division import reciprocal, rsqrt
from strongroom.mpc.functions.exponential import exp
from strongroom.mpc.functions.normalisation import layer_norm, rms_norm
from strongroom.mpc.local import run_local
from strongroom.mpc.party import DEALER, P0, P1, Party
from strongroom.mpc.protocols.compare import amax, argmax, is_negative, less, maximum
from strongroom.mpc.protocols.linear import conv1d, conv2d, conv_transpose2d, matmul, multiply
from strongroom.mpc.protocols.owned import Owned, conv2d_owned, matmul_owned, own
from strongroom.mpc.protocols.pool import absolute, clamp, max_pool2d
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import Convolution, Settings, Transposed
from strongroom.mpc.shared import Shared, concatenate

__all__ = [
    "DEALER",
    "P0",
    "P1",
    "Convolution",
    "Owned",
    "Party",
    "Settings",
    "Shared",
    "Transposed",
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
