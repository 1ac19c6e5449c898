"""An ONNX model as a chain of units, any run of which is a stage.

Read in this order:

- `model`: `load` takes what others made: any opset from 7 on, weights in other files, hostile bytes.
- `optimise`: once, by ONNX Runtime, so that no fusion is lost to a cut.
- `split`: what is too big for one enclave becomes several operators, by output channels or by rows.
- `chain`: `units` cuts at frontiers of few tensors; `Chain` says what crosses each cut and what each run weighs.
- `stages`: `stage_model` makes the ONNX model of a run of units.

Rules:

- A cut lies between two units. The tensors alive across cut i are `chain.frontier(i)`: frontier 0 holds the model's
  inputs, frontier ``len(chain)`` its outputs.
- A stage takes what it needs of the frontier before it and gives what it makes of the frontier behind it. Tensors that
  skip it (`Chain.passed`) never enter it: whoever runs the stages hands them on.
- What depends on no input (weights, and what is computed of weights alone) crosses no cut: each stage that needs it
  has it, and `Chain.weight_bytes` counts it once a stage.
- Stages run in turn give what the whole gives: to the bit, or within 1e-5 of the largest absolute output (1e-2 where
  it computes in float16), since ONNX Runtime lays out a part's memory, and so orders its sums, as it likes. They are
  loaded by ``Stage.load(..., part=True)``: what was not fused in the whole is not fused in a part.
- The same model and arguments give the same units, and the same bytes of each stage.
"""

from strongroom.serve.graph.chain import Chain, Unit, units
from strongroom.serve.graph.model import Model, load
from strongroom.serve.graph.optimise import optimise
from strongroom.serve.graph.shapes import Tensor
from strongroom.serve.graph.split import Split, split, splits
from strongroom.serve.graph.stages import stage_model

__all__ = ["Chain", "Model", "Split", "Tensor", "Unit", "load", "optimise", "split", "splits", "stage_model", "units"]
