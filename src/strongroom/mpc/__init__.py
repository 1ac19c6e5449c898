"""Computing on secrets: two servers that do not collude, and a dealer that never sees data.

Start with `party.py`, whose rules everything keeps, then `shared.py` and any file of `protocols`.
"""

from importlib.util import find_spec

from strongroom.errors import MissingDependencyError

if find_spec("torch") is None:
    raise MissingDependencyError("torch: is not installed", hint="pip install 'strongroom[torch]'")

from strongroom.mpc.connect import join_tcp, join_unix
from strongroom.mpc.local import run_local
from strongroom.mpc.party import DEALER, P0, P1, Party
from strongroom.mpc.protocols.compare import amax, argmax, is_negative, less, maximum
from strongroom.mpc.protocols.linear import conv2d, matmul, multiply
from strongroom.mpc.protocols.owned import Owned, conv2d_owned, matmul_owned, own
from strongroom.mpc.protocols.pool import absolute, clamp, max_pool2d
from strongroom.mpc.protocols.relu import relu
from strongroom.mpc.protocols.reveal import reveal, share
from strongroom.mpc.protocols.truncate import truncate
from strongroom.mpc.ring import Convolution, Settings
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
    "absolute",
    "amax",
    "argmax",
    "clamp",
    "concatenate",
    "conv2d",
    "conv2d_owned",
    "is_negative",
    "join_tcp",
    "join_unix",
    "less",
    "matmul",
    "matmul_owned",
    "max_pool2d",
    "maximum",
    "multiply",
    "own",
    "relu",
    "reveal",
    "run_local",
    "share",
    "truncate",
]
