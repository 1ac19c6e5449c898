"""ONNX Runtime and ONNX, imported on first use, and what they call things."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from strongroom.errors import MissingDependencyError

# ONNX Runtime's words for the tensors that the Open Inference Protocol has, and the protocol's.
DATATYPE_OF: Mapping[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    **{f"tensor(int{bits})": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"tensor(uint{bits})": f"UINT{bits}" for bits in (8, 16, 32, 64)},
}
# ONNX Runtime's levels: its errors quote inputs' shapes and go to standard error, past every log of ours.
FATAL = 4
# Named, so that a build with more providers never moves a model off these cores by itself.
PROVIDERS = ("CPUExecutionProvider",)
# What ONNX Runtime would fuse in a part and did not in the whole: multiplications with weights of 8 bits, which it then
# also does in 8 bits. A part would answer otherwise than the whole.
NOT_IN_PARTS = ("QDQSelectorActionTransformer",)

_loading = threading.Lock()


def onnxruntime() -> Any:
    """ONNX Runtime: clients need none of it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    with _loading:
        # As it is imported it begins a session else, and leaves a file of that among the temporary ones.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            if error.name != "onnxruntime":
                raise
            raise MissingDependencyError(
                "onnxruntime: is not installed, wanted to run a model", hint="pip install 'strongroom[serve]'"
            ) from None
        onnxruntime.set_default_logger_severity(FATAL)
        onnxruntime.disable_telemetry_events()
        return onnxruntime


def onnx() -> Any:
    """ONNX, to read and write models.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnx
        import onnx.inliner
        import onnx.version_converter
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise MissingDependencyError(
            "onnx: is not installed, wanted to read a model", hint="pip install 'strongroom[serve]'"
        ) from None
    return onnx


def cores() -> int:
    """How many cores this process may use: of two threads that share one, each is half of it. At least 1."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return len(usable)
    return _cores(text, usable) or len(usable)


def _cores(cpuinfo: str, usable: Set[int]) -> int:
    """How many cores the usable processors are, by what Linux says of them; 0 where it says nothing."""
    found: set[tuple[str, ...]] = set()
    for processor in cpuinfo.split("\n\n"):
        lines = (line.partition(":") for line in processor.split("\n"))
        facts = {name.strip(): value.strip() for name, _, value in lines}
        number = facts.get("processor", "")
        if number.isdecimal() and int(number) in usable:
            found.add(tuple(facts.get(name, number) for name in ("physical id", "core id")))
    return len(found)


def reason(error: Exception) -> str:
    """ONNX Runtime's words for a failure, without their preamble, on one line."""
    text = " ".join(str(error).split())
    return text.rsplit("failed:", 1)[-1].strip()[:300] or type(error).__name__
