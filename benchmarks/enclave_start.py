"""How long an enclave takes to the first line of its program's `main`, beside the same program outside.

- The first run is in a new home: no digest is known, no CAS and no key is made, nothing is compiled. Its files are in
  the kernel's page cache, if that holds them; what reading the disk takes is the disk's.
- The second run compiles for the ones after it (`strongroom.enclave.compiled`); those are the warm ones.
- Native Python finds the compiled code that the installer made.
- The phases are of one warm run, by a launcher that says when each begins (`enclave_phases.py`), beside what the paper
  says of secureTF's CAS: attestation and keys in about 17 ms, through Intel's service 325 ms (Quoc et al., Middleware
  2020).
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time

from benchmarks.enclave_runs import PROGRAMS, Runs, runs
from benchmarks.harness import Bench, Goal

_PROGRAMS = {"plain": "start.py", "torch": "start_torch.py", "tensorflow": "start_tensorflow.py"}
_PACKAGES = {"plain": (), "torch": ("torch",), "tensorflow": ("tensorflow",)}
WARM = {name: f"start-up more than outside: {name}" for name in _PROGRAMS}
COLD = "first run more than outside, by its bytes at 1 GB/s"
HELP = "strongroom --help"

GOALS = (
    *(Goal(name, 1.5, "s", "at most", full_only=which != "plain") for which, name in WARM.items()),
    Goal(COLD, 1, "x", "at most"),
    Goal(HELP, 150, "ms", "at most"),
)


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    if bench.wants(HELP):
        with runs() as place:
            bench.measure(
                HELP, bench.timed(lambda: place.run([sys.executable, "-m", "strongroom", "--help"])), rounds=5
            )
    for which, name in WARM.items():
        if bench.wants(name, *((COLD,) if which == "plain" else ())):
            with runs(*_PACKAGES[which], new_home=which == "plain") as place:
                place.copy(_PROGRAMS[which])
                _measure_program(bench, place, which)


def _measure_program(bench: Bench, place: Runs, which: str) -> None:
    program = _PROGRAMS[which]
    outside, inside = place.outside(program), place.inside(program)
    place.run(outside)
    place.run([sys.executable, "-m", "strongroom", "run", "--help"])
    native = _first_line(place, outside)
    first = _first_line(place, inside) - native
    if which == "plain":  # whose home is new
        size = _measured_bytes(place, program) / 1e9
        bench.say(f"first run: {first:.2f} s more than outside, {size:.2f} GB measured")
        if bench.wants(COLD):
            bench.record(COLD, first / size)
    if not bench.wants(WARM[which]):
        return
    _first_line(place, inside)  # which has compiled what this one and the next need
    pairs = [(_first_line(place, inside), _first_line(place, outside)) for _ in range(3 if bench.quick else 9)]
    ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
    bench.record(WARM[which], *(a - b for a, b in pairs))
    bench.say(f"{which}: inside {ours:.2f} s, outside {peer:.2f} s")
    for phase, milliseconds in _phases(place, program):
        bench.say(f"{which}: {phase}: {milliseconds:.0f} ms")
    bench.say("secureTF's CAS: attestation and keys in 17 ms; through Intel's service 325 ms")


def _first_line(place: Runs, command: list[str]) -> float:
    """Seconds from here to the first line of the program's `main`, by its own clock, which is this machine's."""
    began = time.time()
    return float(place.run(command).split()[0]) - began


def _measured_bytes(place: Runs, program: str) -> int:
    command = [sys.executable, "-m", "strongroom", "measure", "--json", "--", "python", program]
    told = place.run(command, accept=(0, 60))  # where files are not as their RECORD says
    return sum(int(part["bytes"]) for part in json.loads(told)["parts"])


def _phases(place: Runs, program: str) -> list[tuple[str, float]]:
    """What a warm run does in which order, and how long each takes."""
    command = place.inside(program)
    command[1:3] = [str(PROGRAMS.parent / "enclave_phases.py")]
    lines = [line.split(" ", 1) for line in place.run(command).splitlines()]
    stamps = [(float(line[0]), line[1] if len(line) > 1 else "") for line in lines]
    return [(what, (end - begun) * 1000) for (begun, what), (end, _) in itertools.pairwise(stamps)]
