"""From a model and a plan to the parts of a pipeline: at the owner's, who has the model in the clear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from strongroom.crypto import digest
from strongroom.errors import FormatError, UsageError, printable
from strongroom.serve.graph import Chain, Tensor, load, optimise, stage_model, units
from strongroom.serve.pipeline.document import MAX_BATCH, MAX_PARTS, MAX_REPLICAS, Part, Pipeline
from strongroom.serve.pipeline.frames import size_of
from strongroom.serve.plan import Plan
from strongroom.serve.plan.make import split_as
from strongroom.serve.plan.profile import chain_digest
from strongroom.serve.tensors import TensorInfo


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
        return Pipeline(name, of_model, of_plan, front, inputs, outputs, tuple(parts), batch, delay, tick)


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


def _info(tensor: Tensor) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorInfo(tensor.name, tensor.datatype, shape)
