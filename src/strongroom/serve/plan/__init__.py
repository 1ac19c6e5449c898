"""How a model is cut into stages: measured, planned, written down.

Read in this order:

- `costs`: what each run of units costs as a stage; `paging`: what too little memory costs; `solution`: what is asked.
- `planner`: the best stages there are, exactly; `shortest` for latency, `fastest` for throughput.
- `profile`: what units take on this machine, tried in a process of their own (`prober`, `probe`), remembered (`cache`).
  `transfer` and `paging_probe` measure what frames and paging cost.
- `make`: from a model to a plan; `choices` makes the model smaller first, with `prune`.
- `document`: the plan as bytes with a digest. `draw` draws it.
"""

from strongroom.serve.plan.costs import Costs, Enclaves, Transfer
from strongroom.serve.plan.document import Plan, StagePlan
from strongroom.serve.plan.make import Prepared, Wanted, compare, make, prepare, split_as
from strongroom.serve.plan.paging import Paging
from strongroom.serve.plan.planner import solve
from strongroom.serve.plan.profile import Profile, profile, remembered
from strongroom.serve.plan.solution import Ask, Placed, Solution

__all__ = [
    "Ask",
    "Costs",
    "Enclaves",
    "Paging",
    "Placed",
    "Plan",
    "Prepared",
    "Profile",
    "Solution",
    "StagePlan",
    "Transfer",
    "Wanted",
    "compare",
    "make",
    "prepare",
    "profile",
    "remembered",
    "solve",
    "split_as",
]
