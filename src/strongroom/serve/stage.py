"""A stage: one model, or one part of one, loaded and warm, in this process."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from strongroom.crypto import digest
from strongroom.errors import ModelFormatError, ServeError, UnansweredError, UsageError
from strongroom.serve.ending import Ending
from strongroom.serve.memory import give_back
from strongroom.serve.onnx_file import require_self_contained_onnx
from strongroom.serve.runtime import DATATYPE_OF, FATAL, NOT_IN_PARTS, PROVIDERS, cores, onnxruntime, reason
from strongroom.serve.session import Session
from strongroom.serve.tensors import DATATYPES, Array, TensorInfo, check_fits

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Stage:
    """An ONNX model in an ONNX Runtime session. `infer` may be called from several threads at once.

    Attributes:
        name: by which requests name the model.
        digest: SHA-256 of the model's bytes in hexadecimal digits.
        version: of the model, in the protocol's sense; a service has one version of each model.
        inputs, outputs: what the model says of its tensors, in its order.
    """

    version = "1"

    def __init__(self, session: Any, *, threads: int, name: str, digest: str) -> None:
        """For `load`."""
        self._session = Session(session, threads)
        self._make_options = onnxruntime().RunOptions
        self.name = name
        self.digest = digest
        self.inputs = [_info(node, f"model {name}: input") for node in session.get_inputs()]
        self.outputs = [_info(node, f"model {name}: output") for node in session.get_outputs()]
        self._inputs = {info.name: info for info in self.inputs}
        self._outputs = [info.name for info in self.outputs]

    @classmethod
    def load(cls, model: bytes, *, name: str, threads: int | None = None, part: bool = False) -> Stage:
        """Load a model and run it once, so that the first request finds it warm.

        Args:
            model: an ONNX file's bytes, with all weights in it.
            name: 1 to 128 letters, digits, ``.``, ``_`` and ``-``: it becomes part of a path.
            threads: how many threads work on one inference, of all that are under way; None takes one for each core.
            part: it is a run of units, of `graph.stage_model`: it answers as it does in the whole, whose optimiser has
                done with it what there is to do.

        Raises:
            ModelFormatError: it is not ONNX, keeps weights elsewhere, has tensors that are not numbers, or ONNX
                Runtime cannot run it.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"model name: got {name!r}, wanted letters, digits, '.', '_' and '-'")
        if threads is not None and threads < 1:
            raise UsageError(f"threads: got {threads}, wanted at least 1")
        require_self_contained_onnx(model)
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = FATAL
        # Not ONNX Runtime's own choice, as many: it binds them to cores, those of every stage here to the same ones.
        options.intra_op_num_threads = threads = threads or cores()
        # Threads that spin while they wait take the cores that TLS, HTTP and other stages need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # ONNX Runtime's own arena keeps what it frees as it was; the C library's overwrites it (`enclave.cleared`), and
        # is as fast.
        options.enable_cpu_mem_arena = False
        try:
            more = {"disabled_optimizers": list(NOT_IN_PARTS)} if part else {}
            session = runtime.InferenceSession(model, options, providers=PROVIDERS, **more)
        except Exception as error:
            raise ModelFormatError(
                f"model {name}: ONNX Runtime {runtime.__version__} cannot load it: {reason(error)}",
                hint="onnx.checker.check_model says more; a model of a newer opset needs a newer onnxruntime",
            ) from None
        stage = cls(session, threads=threads, name=name, digest=digest(model).hex())
        stage._warm_up()
        give_back()
        return stage

    def check(self) -> None:
        """It can answer: it is loaded."""

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str] | None = None, ending: Ending | None = None
    ) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: every input of the model by name, of its datatype and shape.
            wanted: names of outputs; None for all.
            ending: ends the run after the operator that is under way then, those in a Loop's body counted one by one.

        Raises:
            ServeError: an input or output does not fit the model, or the model fails on these inputs.
            UnansweredError: `ending` ended it.
        """
        self._check_inputs(inputs)
        names = self._outputs if wanted is None else list(wanted)
        for name in names:
            if name not in self._outputs:
                raise ServeError(f"output {name!r}: unknown, wanted some of {', '.join(self._outputs)}")
        options, ending = self._make_options(), ending or Ending()
        options.log_severity_level = FATAL
        try:
            with ending.stops(lambda: setattr(options, "terminate", True)):
                results = self._session.run(names, inputs, options)
        except MemoryError:
            raise
        except Exception as error:
            if ending.over:
                raise UnansweredError("model: its run was ended, since nobody waits for the answer") from None
            # ONNX Runtime's words name the model's nodes and the inputs' shapes: neither is for the client.
            raise ServeError(
                f"model {self.name}: fails on these inputs ({type(error).__name__})",
                hint="do the inputs' dynamic dimensions fit each other? are values such as token ids within bounds?",
            ) from None
        return dict(zip(names, results, strict=True))

    def metadata(self) -> dict[str, object]:
        """The protocol's model metadata."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": [info.to_wire() for info in self.inputs],
            "outputs": [info.to_wire() for info in self.outputs],
        }

    def _check_inputs(self, inputs: Mapping[str, Array]) -> None:
        for name in inputs:
            if name not in self._inputs:
                raise ServeError(f"input {name!r}: unknown, wanted {', '.join(self._inputs) or 'none'}")
        for name, info in self._inputs.items():
            if name not in inputs:
                raise ServeError(f"input {name!r}: missing, wanted {info}")
            check_fits(inputs[name], info)

    def _warm_up(self) -> None:
        """Memory is laid out and weights are packed on the first run. A model that dislikes zeros stays cold."""
        zeros = {
            info.name: np.zeros([1 if size < 0 else size for size in info.shape], DATATYPES[info.datatype])
            for info in self.inputs
        }
        try:
            self.infer(zeros)
        except ServeError:
            return


def _info(node: Any, what: str) -> TensorInfo:
    datatype = DATATYPE_OF.get(node.type)
    if datatype is None:
        raise ModelFormatError(
            f"{what} {node.name!r}: is a {node.type}, wanted a tensor of numbers",
            hint="for scikit-learn classifiers export with options={'zipmap': False}" if "map" in node.type else None,
        )
    return TensorInfo(node.name, datatype, tuple(d if isinstance(d, int) else -1 for d in node.shape))
