"""Operators that torch itself writes in terms of others.

Only those are taken apart whose decomposition depends on shapes and public arguments alone. What it is made of has a
protocol or raises, as everywhere.
"""

from __future__ import annotations

from torch._decomp import decomposition_table

from strongroom.mpc.tensor.operators.registry import aten
from strongroom.mpc.tensor.shared_tensor import APART

_NAMES = "addmv addr channel_shuffle glu im2col pixel_shuffle pixel_unshuffle rot90 unsafe_split.Tensor"

for _name in _NAMES.split():
    _packet, _, _overload = _name.partition(".")
    _operator = getattr(getattr(aten, _packet), _overload or "default")
    APART[_operator] = decomposition_table[_operator]
