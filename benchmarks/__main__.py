"""`python -m benchmarks NAME [--quick] [--only TEXT] [--json FILE] [--plots DIR]`: measure an area, or `all`.

The exit status is 0 only if every goal measured holds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.harness import Area, run_area

# In the order of the story. An area's module is imported only when it is measured.
AREAS = {
    "story": "seal, train, serve, predict: the whole story against the same without protection",
    "attest": "reports appraised, results verified, the exchange of a boot",
    "cas": "enclaves attested and provisioned, anchors moved, 100 kills of the CAS",
    "cas_log": "the CAS's audit log at 100,000 entries: appends and proofs",
    "sealed": "sealed files: bytes per second, random reads, opening 100 GiB",
    "mount": "a mounted vault beside gocryptfs and the plain disk",
    "data": "sealed data sets against a plain memory-mapped array",
    "mirror": "the mirror of a training: saving, restoring, what training pays",
    "kills": "trainings killed 100 times at random moments, against the same left alone",
    "mpc": "products, functions and networks on shares beside SecretFlow SPU and CrypTen",
    "mpc_accuracy": "the tf-encrypted paper's networks on MNIST: on shares what they are in the clear",
    "mpc_models": "ONNX, Keras and scikit-learn models, a language model and ResNets on shares",
    "serve_plain": "a running service, whole and in stages, beside plain ONNX Runtime",
    "serve_paging": "Temper's networks in 94 MiB: partitioned, and in one process that pages",
    "serve_attest": "attestation of a service, once for all users and for each; what a naive service does",
    "serve_links": "stages over links of 1 Gbit/s",
    "serve_lite": "one model in an enclave by TensorFlow, LiteRT and ONNX Runtime, in 94 MiB",
    "enclave": "programs in an enclave beside the same outside: start-up, training, sealed data, classification",
    "mesh": "a tunnel of the mesh beside stunnel, wireguard-go and plain interfaces: streams and round trips",
    "mesh_training": "distributed training and sums through the mesh's proxies beside as many processes outside",
    "mesh_faults": "replicas killed ten times in an elastic training; the CAS stopped, and killed, for a minute",
    "plan": "the planner: its speed, its plans against all there are, what it predicts against what is measured",
    "pipeline_models": "models in parts answer as the whole: trained ones, Temper's networks, a language model",
    "pipeline_faults": "a model in parts whose enclaves are killed under load: what is lost, how long requests wait",
    "plinius": "Plinius's networks on MNIST: trained through kills, asked in an enclave",
}


def load(name: str) -> Area:
    """The module of an area."""
    area: Area = importlib.import_module(f"benchmarks.{name}")
    return area


def main(
    argv: Sequence[str] | None = None, *, areas: Mapping[str, str] = AREAS, load: Callable[[str], Area] = load
) -> int:
    """Measure, print the table, write the JSON; the result is the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Strongroom against its goals.",
        epilog="areas:\n" + "\n".join(f"  {name:13} {what}" for name, what in areas.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*areas, "all"], metavar="NAME", help="an area, or all")
    parser.add_argument("--quick", action="store_true", help="a minute for each area; says which goals that leaves out")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="measure only goals with TEXT in their names, such as 'save 10 MB'; may be given again for more",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value measured, and the machine")
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        default=os.environ.get("STRONGROOM_BENCH_PLOTS") or None,
        help="draw what is measured there, where an area can; needs matplotlib (default: $STRONGROOM_BENCH_PLOTS)",
    )
    args = parser.parse_args(argv)
    if args.plots:
        args.plots = Path(args.plots)
        args.plots.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        console.print(f"  {text}", style="dim", markup=False)

    console = Console(highlight=False)
    reports = []
    for name in areas if args.name == "all" else [args.name]:
        console.print(f"measuring {name}", style="dim", markup=False)
        reports.append(run_area(name, load, quick=args.quick, only=args.only, plots=args.plots, say=say))
        if reports[-1].trouble:
            console.print(reports[-1].trouble, style="red", markup=False)

    left_out = all(result.verdict == "left out" for each in reports for result in each.results)
    if args.only and left_out and not any(each.trouble for each in reports):
        parser.error(f"--only: no goal of {args.name} has {' or '.join(map(repr, args.only))} in its name")

    facts = report.machine()
    console.print(report.table(reports))
    console.print(report.summary(reports, quick=args.quick), markup=False, style="bold")
    console.print(f"on {facts['processor']}, {facts['cores']} cores, {facts['system']}", markup=False, style="dim")
    if args.json:
        args.json.write_text(json.dumps(report.document(reports, quick=args.quick), indent=2) + "\n")
    return 0 if all(each.holds for each in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
