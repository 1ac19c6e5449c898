"""From a model and a plan to the parts of a pipeline: at the owner's, who has the model in the clear."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from strongroom.crypto import digest
from strongroom.errors import FormatError, UsageError, printable
from strongroom.serve.graph import Chain, Tensor, load, optimise, stage_model, units
from strongroom.serve.pipeline.document import MAX_BATCH, MAX_PARTS, MAX_POWER, MAX_REPLICAS, MAX_TIMES, Part, Pipeline
from strongroom.serve.pipeline.frames import size_of
from strongroom.serve.pipeline.room import OpenSize
from strongroom.serve.plan import Plan
from strongroom.serve.plan.make import split_as
from strongroom.serve.plan.profile import chain_digest
from strongroom.serve.tensors import TensorInfo

_LARGE = 1 << 16  # times what is planned, at which what grows fastest outweighs the rest


@dataclass(frozen=True)
class Pieces:
    """A model that was cut as a plan says.

    Attributes:
        models: of the parts: ONNX files' bytes.
    """

    plan: Plan
    chain: Chain
    models: tuple[bytes, ...] = field(repr=False)

    def pipeline(self, name: str, *, front: str, policies: tuple[str, ...], delay: int = 0, tick: int = 0) -> Pipeline:
        """The pipeline of these parts.

        Args:
            name: by which requests name the model.
            front, policies: of the front door and of the parts.
            delay, tick: in microseconds, as `Pipeline` has them.

        Raises:
            UsageError: the plan is for batches, and the model has no rows.
        """
        chain, sizes = self.chain, self.chain.sizes(self.plan.dims)
        last = len(chain)

        def frame(tensors: tuple[Tensor, ...]) -> int:
            return size_of(len(tensors), max(1, self.plan.batch) * sum(each.bytes_of(sizes) for each in tensors))

        parts = []
        for stage, model, policy in zip(self.plan.stages, self.models, policies, strict=True):
            takes, gives = (each(stage.first, stage.last) for each in (chain.inputs, chain.outputs))
            taken, given = (tuple(each.name for each in tensors) for tensors in (takes, gives))
            frames = frame(takes), frame(gives)
            parts.append(Part(policy, digest(model).hex(), taken, given, *frames, stage.replicas))
        inputs, outputs = (tuple(map(_info, chain.frontier(cut))) for cut in (0, last))
        batch = self.plan.batch
        if batch > 1 and any(each.shape[:1] != (-1,) for each in (*inputs, *outputs)):
            raise UsageError(
                f"plan: is for batches of {batch}, and not every input and output has rows of any number",
                hint="make it with --batch 1, or export the model with a first size that is open",
            )
        if batch > MAX_BATCH:
            raise UsageError(f"plan: is for batches of {batch}, wanted at most {MAX_BATCH}")
        of_model, of_plan = chain.model.digest, self.plan.digest
        room, times = self._room()
        return Pipeline(name, of_model, of_plan, front, inputs, outputs, tuple(parts), room, times, batch, delay, tick)

    def _room(self) -> tuple[tuple[OpenSize, ...], int]:
        """The sizes that the model leaves open, and how many times what is planned there is room for.

        The latter in the enclave with least, where a stage's tensors are as large as ONNX Runtime says that they are.
        """
        plan, names = self.plan, _open_names(self.chain)
        planned = {
            name: max(plan.dims.get(name, 1), plan.batch if any(axis == 0 for _, axis in at) else 1)
            for name, at in names.items()
        }
        times = MAX_TIMES
        for stage, tensors in zip(plan.stages, self._tensors(planned), strict=True):
            # What was measured is what a process holds after a run: large tensors are given back by then.
            taken = max(stage.memory, stage.weights + tensors)
            times = min(times, 1 + max(0, plan.enclaves[stage.enclave].memory - taken) // tensors)
        sizes = tuple(OpenSize(at, planned[name], self._power(name, planned)) for name, at in names.items())
        return sizes, times

    def _power(self, name: str, planned: Mapping[str, int]) -> int:
        """With which power of a size the tensors of a stage grow where they grow most."""
        once, twice = (self._tensors({**planned, name: planned[name] * by}) for by in (_LARGE, 2 * _LARGE))
        most = max(math.ceil(math.log2(two / one) - 0.5) for one, two in zip(once, twice, strict=True))
        return min(MAX_POWER, max(1, most))

    def _tensors(self, sizes: Mapping[str, int]) -> list[int]:
        """Bytes that are alive at once in each stage."""
        return [max(1, self.chain.alive_bytes(each.first, each.last, sizes)) for each in self.plan.stages]


def cut(model: bytes, plan: Plan, *, external: Callable[[str], bytes] | None = None) -> Pieces:
    """Cut a model as a plan says.

    Args:
        external: as `graph.load` has it.

    Raises:
        UsageError: the plan is of another model, or of other units than this release cuts it into.
        ModelFormatError: the model cannot be loaded.
    """
    loaded = load(model, external=external)
    if loaded.digest != plan.model:
        raise UsageError(
            f"plan: is of model {plan.model[:12]}, and this is {loaded.digest[:12]}",
            hint="make the plan of this file: strongroom plan MODEL --memory SIZE --output FILE"
            + ("; a smaller model is written by --save-model" if plan.change else ""),
        )
    chain = units(split_as(optimise(loaded), plan.splits), dims=plan.dims)
    if len(chain) != plan.units or chain_digest(chain) != plan.chain:
        raise UsageError(
            "plan: cuts the model into other units than this installation does", hint="make the plan again here"
        )
    if len(plan.stages) > MAX_PARTS:
        raise UsageError(f"plan: has {len(plan.stages)} stages, wanted at most {MAX_PARTS}")
    if max(each.replicas for each in plan.stages) > MAX_REPLICAS:
        raise UsageError(f"plan: has more than {MAX_REPLICAS} replicas of a stage")
    if not all(each.ranked for each in chain.frontier(0)):
        raise FormatError("model: does not say how many sizes its inputs have, wanted a number of them")
    models = tuple(stage_model(chain, each.first, each.last).SerializeToString() for each in plan.stages)
    return Pieces(plan, chain, models)


def telling_sizes(chain: Chain, plan: Plan) -> Iterator[str]:
    """Where the size of what goes between two enclaves may tell of an input's values; one line for each part."""
    for number, stage in enumerate(plan.stages, 1):
        names = chain.unnamed(stage.first, stage.last)
        if names:
            said = ", ".join(repr(printable(each)[:80]) for each in names[:3]) + (", ..." if len(names) > 3 else "")
            yield f"part {number}: the host sees how large {said} is, which may follow from an input's values"


def open_sizes(chain: Chain, dims: Mapping[str, int]) -> Iterator[str]:
    """Sizes of the inputs, but rows, that the model leaves open and the plan does not say; one line for each."""
    inputs = chain.frontier(0)
    for name, at in _open_names(chain).items():
        if name not in dims and all(axis for _, axis in at):
            said, where = printable(name)[:60], printable(inputs[at[0][0]].name)[:80]
            yield (
                f"size {said!r} of input {where!r} is open, and planned as 1: larger requests may be refused"
                + ("" if name.startswith("?") else f" (--dim {said}=N plans for N)")
            )


def _open_names(chain: Chain) -> dict[str, tuple[tuple[int, int], ...]]:
    """The sizes of the inputs that the model leaves open, by name, and where they are."""
    found: dict[str, tuple[tuple[int, int], ...]] = {}
    for number, tensor in enumerate(chain.frontier(0)):
        for axis, size in enumerate(tensor.shape):
            if isinstance(size, str):
                found[size] = (*found.get(size, ()), (number, axis))
    return found


def _info(tensor: Tensor) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorInfo(tensor.name, tensor.datatype, shape)
