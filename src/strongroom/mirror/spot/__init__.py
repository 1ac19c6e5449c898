"""Spot instances: cheap machines that are taken away when their price rises. What does a mirror save there?

`read` takes a trace of prices or of availability, `simulate` runs a training job along it, `sweep` and `best` choose a
bid and an interval between commits together; `strongroom.mirror.spot.plot` draws. `strongroom.mirror.spot.run` really
kills and restarts a program along a trace, and `strongroom.mirror.spot.curves` draws its losses. Needs NumPy only.
"""

from strongroom.mirror.spot.simulate import (
    Comparison,
    Job,
    Outcome,
    Saving,
    Sweep,
    best,
    compare,
    daly,
    daly_steps,
    simulate,
    sweep,
    young,
)
from strongroom.mirror.spot.traces import Trace, parse, parse_aws, parse_csv, read

__all__ = [
    "Comparison",
    "Job",
    "Outcome",
    "Saving",
    "Sweep",
    "Trace",
    "best",
    "compare",
    "daly",
    "daly_steps",
    "parse",
    "parse_aws",
    "parse_csv",
    "read",
    "simulate",
    "sweep",
    "young",
]
