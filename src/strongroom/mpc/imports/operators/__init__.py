"""What nodes run: ordinary torch functions, so that secrets take part where torch's operators have protocols.

Importing this registers all of them. Shapes, axes and indices are plain tensors even where the data is secret.
"""

from strongroom.mpc.imports.operators import (
    classical,
    elementwise,
    layers,
    pooling,
    rearrange,
    recurrent,
    reduce,
    tensorflow,
)

__all__ = ["classical", "elementwise", "layers", "pooling", "rearrange", "recurrent", "reduce", "tensorflow"]
