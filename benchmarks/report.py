"""What a run shows: one table for a person, one JSON document with every value behind it."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from benchmarks.harness import AreaReport, Result, Sample

_VERSIONS = ("strongroom", "numpy", "torch", "onnxruntime", "onnx", "cryptography", "pyOpenSSL", "uvicorn", "pyfuse3")


def machine() -> dict[str, object]:
    """Where the figures come from. What cannot be told is None."""
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _VERSIONS},
        "commit": _commit(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def document(reports: Sequence[AreaReport], *, quick: bool) -> dict[str, object]:
    """The run as JSON: the machine, and for each goal its verdict and every value measured."""
    return {
        "machine": machine(),
        "quick": quick,
        "holds": all(report.holds for report in reports),
        "areas": [
            {
                "name": report.name,
                "holds": report.holds,
                "seconds": round(report.seconds, 3),
                "trouble": report.trouble,
                "goals": [_goal(result) for result in report.results],
            }
            for report in reports
        ],
    }


def _goal(result: Result) -> dict[str, object]:
    return {
        **asdict(result.goal),
        "verdict": result.verdict,
        "value": _number(result.value),
        "ours": _sample(result.ours),
        "peer": _sample(result.peer),
        "peer_name": result.peer_name,
        "ratios": _sample(result.ratios),
    }


def _sample(sample: Sample | None) -> dict[str, object] | None:
    if sample is None:
        return None
    return {
        "unit": sample.unit,
        "median": _number(sample.median),
        "spread": _number(sample.spread),
        "values": [_number(value) for value in sample.values],
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None  # JSON has no NaN


_FEW = 3  # goals left out that the summary names, for each area

_STYLE = {"holds": "green", "fails": "bold red", "full run": "dim", "left out": "dim", "not measured": "bold red"}


def table(reports: Sequence[AreaReport]) -> Table:
    """One row for each goal: median and spread of both sides, ratio, bound, verdict. Fits 80 columns.

    Goals that `--only` left out have none.
    """
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    grid.add_column("goal")
    for column in ("ours", "peer", "ratio", "wanted"):
        grid.add_column(column, justify="right")
    grid.add_column("")
    for report in reports:
        shown = [result for result in report.results if result.verdict != "left out"]
        if not shown and report.results:
            continue
        grid.add_row(Text(report.name, style="bold"))
        for result in shown:
            goal = result.goal
            name = Text(goal.name)
            if result.peer_name:
                name.append(f"\nvs {result.peer_name}", style="dim")
            grid.add_row(
                name,
                _cell(result.ours),
                _cell(result.peer),
                _cell(result.ratios),
                f"{'≤' if goal.direction == 'at most' else '≥'} {_rounded(goal.wanted)} {goal.unit}",
                Text(result.verdict, style=_STYLE[result.verdict]),
            )
    return grid


def _cell(sample: Sample | None) -> Text:
    """The median, and the spread below it, without digits that the spread makes meaningless."""
    if sample is None:
        return Text()
    cell = Text(f"{_rounded(sample.median)} {sample.unit}")
    if len(sample.values) > 1:
        cell.append(f"\n±{_rounded(sample.spread, digits=2)}", style="dim")
    return cell


def _rounded(value: float, digits: int = 3) -> str:
    """So many significant digits, and no exponent where a person can do without."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def summary(reports: Sequence[AreaReport], *, quick: bool) -> str:
    """One line: how many goals hold and fail; which wait for a full run, or were left out."""
    verdicts = [result.verdict for report in reports for result in report.results]
    parts = [f"{verdicts.count('holds')} hold", f"{verdicts.count('fails')} fail"]
    if "not measured" in verdicts:
        parts.append(f"{verdicts.count('not measured')} not measured")
    for verdict, words, always in (("full run", "need the full run", quick), ("left out", "left out", False)):
        named = [(r.name, [x.goal.name for x in r.results if x.verdict == verdict]) for r in reports]
        count = sum(len(goals) for _, goals in named)
        shown = count if always else _FEW  # the JSON document has them all
        which = "; ".join(f"{name}: {'; '.join(goals[:shown])}" for name, goals in named if goals)
        if which or always:
            parts.append(f"{count} {words}" + (f" ({which}{'; ...' if count > shown else ''})" if which else ""))
    return ", ".join(parts)
