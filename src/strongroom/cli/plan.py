"""`strongroom plan`: how a model is cut into stages that fit their enclaves, and what that will cost."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.markup import escape

from strongroom.cli import output
from strongroom.cli.plan_model import add_model, add_sizes, example_values, read_plan, sizes_of, source_of
from strongroom.errors import FormatError, StrongroomError, UsageError, printable

if TYPE_CHECKING:
    from strongroom.serve.plan.cache import Cache
    from strongroom.serve.plan.choices import Measured
    from strongroom.serve.plan.document import Plan
    from strongroom.serve.plan.make import Prepared, Wanted
    from strongroom.serve.plan.paging import Paging
    from strongroom.serve.plan.prober import Taken, Values
    from strongroom.serve.plan.profile import Profile

_T = TypeVar("_T")
_TRIES = 4  # plans whose stages are measured


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Memory is what a model may take in one enclave, beyond what the process holds before it loads one (Python and "
        "ONNX Runtime: some 45 MiB). Each part of the model is loaded and run here once, which is remembered. "
        "Example: strongroom plan resnet.onnx --memory 94MiB --draw plan.svg"
    )
    add_model(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--memory", metavar="SIZE", help="of each enclave, or of an edge device, such as 94MiB")
    where.add_argument("--machines", type=Path, metavar="FILE", help="TOML: enclaves of several sizes and speeds")
    parser.add_argument("--enclaves", type=int, metavar="N", help="how many there are (default: as many as it takes)")
    parser.add_argument("--objective", choices=("latency", "throughput"), default="latency", help="(default: latency)")
    add_sizes(
        parser,
        batch="inputs of one run (default: 1)",
        dim="the largest of a size that the model leaves open, once for each",
    )
    parser.add_argument(
        "--example",
        type=Path,
        metavar="INPUT",
        help=".npy, .npz or .json: a request; the model is run on its whole numbers, where zeros will not do",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of one run (default: one for each core)")
    parser.add_argument(
        "--cores",
        choices=("shared", "own"),
        help="do all enclaves run on the same cores? (default: shared, with --machines own)",
    )
    parser.add_argument(
        "--paging", choices=("allow", "refuse"), default="refuse", help="may a stage take more than there is, and page?"
    )
    parser.add_argument(
        "--paging-costs",
        choices=("measured", "swap", "sgx"),
        help="what paging costs: measured on this machine (a minute, as root; remembered), or documented figures",
    )
    smaller = parser.add_argument_group("a smaller model, measured beside the given one")
    smaller.add_argument("--quantize", choices=("int8",), help="weights in 8 bits")
    smaller.add_argument(
        "--prune", type=float, metavar="F", help="take away this share of channels, least weights first"
    )
    smaller.add_argument(
        "--calibrate", type=Path, metavar="DATA", help=".npy or .npz of inputs: activations in 8 bits too"
    )
    smaller.add_argument("--labels", type=Path, metavar="FILE", help=".npy of the classes of those inputs")
    smaller.add_argument(
        "--save-model", metavar="FILE", help="write the smaller model: of a sealed one a path in its vault"
    )
    parser.add_argument(
        "--compare", type=Path, action="append", default=[], metavar="PLAN", help="another plan, beside it"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="run the stages here, and plan again if one takes more than predicted",
    )
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the graph and its cuts: a .svg or .png")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the plan")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from strongroom.serve.plan import choices
    from strongroom.serve.plan.cache import Cache
    from strongroom.serve.plan.make import compare, prepare
    from strongroom.serve.plan.profile import remembered

    others = {path.name: read_plan(path, "--compare") for path in args.compare}
    batch, dims = sizes_of(args)
    threads = len(os.sched_getaffinity(0)) if args.threads is None else args.threads
    if threads < 1:
        raise UsageError(f"--threads: got {threads}, wanted at least 1")
    _require_choices(args)
    _require_places(args)
    cache = Cache.of_user()
    wanted = _wanted(args, threads, cache, dims)
    paging, note = _paging(args, cache)
    source = source_of(args)
    model = source.load()
    change, measured = None, None
    if args.quantize or args.prune:
        data = choices.read_data(args.calibrate, args.labels) if args.calibrate else None
        smaller, change = choices.smaller(
            model, quantize=bool(args.quantize), prune=args.prune or 0.0, data=data, secret=source.sealed is not None
        )
        if data is not None:
            measured = choices.accuracy(model, smaller, data, threads=threads)
        if args.save_model:
            source.save(smaller.proto.SerializeToString(), args.save_model)
    else:
        smaller = model
    given = functools.partial(example_values, example=args.example, batch=batch, dims=dims)
    largest = max(kind.memory for kind in wanted.enclaves)
    with _progress(args.json) as say:

        def profiled(of: Any, change: Any = None) -> tuple[Prepared, Profile]:
            prepared = prepare(of, memory=largest, dims=dims, change=change)
            found = remembered(
                prepared.chain, cache, dims=dims, batch=batch, threads=threads, values=given(prepared.chain), say=say
            )
            return prepared, found

        prepared, profile = profiled(smaller, change)
        plan, took, profile = _planned(args, prepared, profile, wanted, paging, threads, given(prepared.chain), say)
        compared: dict[str, Plan | StrongroomError] = {"this plan": plan}
        compared |= compare(prepared, profile, wanted, paging)
        if change is not None:
            compared |= {f"float, {name}": each for name, each in compare(*profiled(model), wanted, paging).items()}
        compared |= others
    if args.output:
        args.output.write_bytes(plan.to_bytes())
    if args.draw:
        from strongroom.serve.plan import draw

        draw.write(draw.draw(plan, profile.costs, source.name), args.draw)
    from strongroom.serve.pipeline.cut import open_sizes, telling_sizes

    chain = prepared.chain
    notes = [*chain.model.notes, *chain.notes, *telling_sizes(chain, plan), *open_sizes(chain, dims), note]
    if args.json:
        output.result(_result(plan, profile, compared, measured, took, notes))
    else:
        _print(source.name, plan, profile, compared, measured, took, notes)
    return 0


def _require_choices(args: argparse.Namespace) -> None:
    if args.prune is not None and not 0 < args.prune < 1:
        raise UsageError(f"--prune: got {args.prune:g}, wanted a share between 0 and 1")
    if args.labels and not args.calibrate:
        raise UsageError("--labels: are those of --calibrate's inputs, give that")
    if (args.calibrate or args.save_model) and not (args.quantize or args.prune):
        raise UsageError("--calibrate, --save-model: are for a smaller model, add --quantize int8 or --prune F")


def _require_places(args: argparse.Namespace) -> None:
    """What is written at the end can be, as far as that can be told before all is measured."""
    for option, path in (("--output", args.output), ("--draw", args.draw)):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise UsageError(f"{option}: there is no directory {path.parent}")
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"{option}: {path} cannot be written")
    if args.draw:
        from strongroom.serve.plan import draw

        draw.check(args.draw)


def _wanted(args: argparse.Namespace, threads: int, cache: Cache, dims: Mapping[str, int]) -> Wanted:
    from strongroom.serve.plan import transfer
    from strongroom.serve.plan.costs import Enclaves, Transfer
    from strongroom.serve.plan.machines import parse_machines
    from strongroom.serve.plan.make import Wanted
    from strongroom.serve.plan.profile import Machine
    from strongroom.serve.plan.words import parse_size

    if args.machines:
        if args.enclaves is not None:
            raise UsageError("--enclaves: --machines says how many there are")
        kinds = parse_machines(args.machines.read_bytes())
    else:
        kinds = (Enclaves(parse_size(args.memory, "--memory"), args.enclaves),)
    cores = args.cores or ("own" if args.machines else "shared")
    of = {"kind": "transfer", "machine": Machine.here(threads).to_wire()}
    found = _remembered(cache, of, lambda wire: Transfer(wire["frame_ns"], wire["byte_ps"]))
    if found is None:
        found = transfer.measure()
        cache.put(of, {"frame_ns": found.frame_ns, "byte_ps": found.byte_ps})
    at_once = max(1, len(os.sched_getaffinity(0)) // threads)
    return Wanted(kinds, found, args.objective, at_once if cores == "shared" else None, dims)


def _paging(args: argparse.Namespace, cache: Cache) -> tuple[Paging, str]:
    """What paging costs, and a line that says where that is from."""
    from strongroom.serve.plan import paging, paging_probe
    from strongroom.serve.plan.profile import Machine

    if args.paging_costs in paging.CONSTANTS:
        return paging.CONSTANTS[args.paging_costs], f"paging: documented figures for {args.paging_costs}"
    of = {"kind": "paging", "form": 3, "machine": Machine.here(0).to_wire()}
    found = _remembered(cache, of, lambda wire: paging.Paging(wire["page_ns"], wire["sharpness"], "measured"))
    if found is None and args.paging_costs == "measured":
        found = paging_probe.measure(swap_beside=cache.directory, say=output.note)
        cache.put(of, {"page_ns": found.page_ns, "sharpness": found.sharpness})
    if found is not None:
        return found, "paging: measured on this machine"
    return paging.CONSTANTS[
        "swap"
    ], "paging: documented figures for swap; --paging-costs measured measures this machine"


def _remembered(cache: Cache, of: Mapping[str, Any], read: Callable[[dict[str, Any]], _T]) -> _T | None:
    try:
        wire = cache.get(of)
        return None if wire is None else read(wire)
    except (FormatError, KeyError, TypeError, UsageError) as error:
        output.note(f"{error}; measuring anew")
        return None


@contextlib.contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[str], None]]:
    """Tells a person at the terminal what goes on, on one line that is gone at the end."""
    if as_json or not output.stderr.is_terminal:
        yield lambda text: None
        return
    with output.stderr.status("") as status:
        yield lambda text: status.update(escape(text))


def _planned(
    args: argparse.Namespace,
    prepared: Prepared,
    profile: Profile,
    wanted: Wanted,
    paging: Paging,
    threads: int,
    values: Values,
    say: Callable[[str], None],
) -> tuple[Plan, list[Taken] | None, Profile]:
    """The plan; if its stages are measured and one takes more than predicted, a plan that knows that."""
    from strongroom.serve.plan.make import make

    allowed = paging if args.paging == "allow" else None
    plan = make(prepared, profile, wanted, allowed)
    if not args.measure:
        return plan, None, profile
    for _ in range(_TRIES):
        took = _measure(prepared, profile, plan, wanted.dims or {}, threads, values, say)
        profile = profile.corrected([(each.first, each.last) for each in plan.stages], took)
        again = make(prepared, profile, wanted, allowed)
        if [each.last for each in again.stages] == [each.last for each in plan.stages]:
            return again, took, profile
        plan = again
    return plan, _measure(prepared, profile, plan, wanted.dims or {}, threads, values, say), profile


def _measure(
    prepared: Prepared,
    profile: Profile,
    plan: Plan,
    dims: Mapping[str, int],
    threads: int,
    values: Values,
    say: Callable[[str], None],
) -> list[Taken]:
    """The plan's stages, each loaded and run here with memory enough."""
    from strongroom.serve.plan.prober import Prober
    from strongroom.serve.plan.profile import batch_sizes

    with Prober.start(threads) as prober:
        prober.begin(prepared.chain, batch_sizes(prepared.chain, profile.batch, dims), values)
        found = []
        for number, stage in enumerate(plan.stages):
            say(f"measuring: stage {number + 1} of {len(plan.stages)}")
            found.append(prober.take(prepared.chain, stage.first, stage.last, 10**9))
        return found


def _result(
    plan: Plan,
    profile: Profile,
    compared: Mapping[str, Plan | StrongroomError],
    measured: Measured | None,
    took: list[Taken] | None,
    notes: list[str],
) -> dict[str, Any]:
    return {
        "plan": plan.to_wire(),
        "digest": plan.digest,
        "latency_ms": plan.latency_ns / 1e6,
        "answers_per_second": plan.answers_per_second,
        "one_process": {"memory": profile.whole.resident, "ms": profile.whole.nanoseconds / 1e6},
        "compared": {
            name: each.to_wire() if isinstance(each, StrongroomError) else _figures(each)
            for name, each in compared.items()
        },
        "accuracy": measured and dataclasses.asdict(measured),
        "measured": took and [{"memory": each.resident, "ms": each.nanoseconds / 1e6} for each in took],
        "notes": notes,
    }


def _figures(plan: Plan) -> dict[str, Any]:
    return {
        "stages": len(plan.stages),
        "enclaves": sum(each.replicas for each in plan.stages),
        "weights": sum(each.weights for each in plan.stages),
        "largest_memory": max(each.memory for each in plan.stages),
        "latency_ms": plan.latency_ns / 1e6,
        "answers_per_second": plan.answers_per_second,
    }


def _print(
    name: str,
    plan: Plan,
    profile: Profile,
    compared: Mapping[str, Plan | StrongroomError],
    measured: Measured | None,
    took: list[Taken] | None,
    notes: list[str],
) -> None:
    from strongroom.serve.plan.words import duration, rate, size

    write = functools.partial(output.stdout.print, markup=False, soft_wrap=True)
    write(
        f"{name}: {plan.units} units, batch {plan.batch}; in one process {size(profile.whole.resident)}, "
        f"{duration(profile.whole.nanoseconds)} a run"
    )
    if plan.splits:
        write(f"cut in pieces by output channel: {', '.join(f'{s.output} in {s.pieces}' for s in plan.splits)}")
    rows = [["stage", "units", "weights", "memory", "of", "enclaves", "computes", "hands on"]]
    rows[0] += ["took", "in"] if took is not None else []
    for number, stage in enumerate(plan.stages):
        kind = plan.enclaves[stage.enclave]
        rows.append(
            [
                str(number + 1),
                f"{stage.first}-{stage.last - 1}" if stage.last - stage.first > 1 else str(stage.first),
                size(stage.weights),
                size(stage.memory),
                size(kind.memory),
                f"{stage.replicas}" if len(plan.enclaves) == 1 else f"{stage.replicas} {kind.name}",
                duration(stage.nanoseconds),
                size(stage.sends),
            ]
        )
        if took is not None:
            rows[-1] += [size(took[number].resident), duration(took[number].nanoseconds)]
    write(_table(rows))
    cores = "cores of their own" if plan.shared is None else "the same cores"
    write(
        f"predicted, enclaves on {cores}: latency {duration(plan.latency_ns)}, "
        f"{rate(plan.answers_per_second)} answers a second"
    )
    write("")
    rows = [["compared", "stages", "enclaves", "weights", "largest", "latency", "a second"]]
    for label, each in compared.items():
        if isinstance(each, StrongroomError):
            rows.append([label, "none", "", "", "", "", ""])
            notes = [*notes, f"{label}: {each.message}"]
            continue
        figures = _figures(each)
        rows.append(
            [
                label,
                str(figures["stages"]),
                str(figures["enclaves"]),
                size(figures["weights"]),
                size(figures["largest_memory"]),
                duration(each.latency_ns),
                rate(each.answers_per_second),
            ]
        )
    write(_table(rows))
    if measured is not None:
        right = "" if measured.before is None else f"right {measured.after:.2%}, before {measured.before:.2%}; "
        write(
            f"accuracy on {measured.inputs} inputs: {right}same class as before {measured.agreement:.2%}, outputs "
            f"differ by up to {measured.difference:.2%} of the largest"
        )
    write(f"plan {plan.digest}")
    for line in notes:
        output.note(line)


def _table(rows: list[list[str]]) -> str:
    """Columns as wide as they must be: the first to the left, the others to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
