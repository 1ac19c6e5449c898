"""How the demo looks: acts that tick while they run, facts below them, a table at the end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from strongroom.errors import StrongroomError, printable


@dataclass
class Act:
    """One act of the story: what its row in the closing table says, and the lines shown below it."""

    letter: str
    title: str
    outcome: str = ""
    protected: str = ""
    seconds: float = 0.0
    facts: list[str] = field(default_factory=list)

    def to_wire(self) -> dict[str, object]:
        return {
            "act": self.letter,
            "title": self.title,
            "outcome": self.outcome,
            "protected": self.protected,
            "seconds": round(self.seconds, 2),
            "facts": self.facts,
        }


class Show:
    """Draws acts on a console; on one that is no terminal, plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.acts: list[Act] = []
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._act: Act | None = None

    def banner(self, title: str, text: str) -> None:
        self._console.print(
            Panel(escape(text), title=f"[bold]{escape(title)}[/]", border_style="cyan", width=self.width)
        )

    @property
    def width(self) -> int:
        """Characters of a line."""
        return min(self._console.width, 100)

    @contextmanager
    def act(self, letter: str, title: str) -> Iterator[Act]:
        """Run one act; its row and its time are kept."""
        act = Act(letter, title)
        self.acts.append(act)
        self._act = act
        self._console.print(f"\n[bold cyan]{letter}[/]  [bold]{escape(title)}[/]")
        started = time.monotonic()
        columns = (
            TextColumn("  "),
            SpinnerColumn("dots", style="cyan"),
            TextColumn("[dim]{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            self._progress, self._task = bar, bar.add_task("starting", total=None)
            try:
                yield act
            finally:
                self._progress = self._task = None
        act.seconds = time.monotonic() - started
        self._console.print(f"   [dim]{act.seconds:.1f} s[/]")

    def doing(self, text: str, *, done: float | None = None) -> None:
        """What is going on now, and how much of it is done (0 to 1) if that is known."""
        if self._progress is not None and self._task is not None:
            total = None if done is None else 1.0
            self._progress.update(self._task, description=escape(text), total=total, completed=done or 0)

    def fact(self, text: str) -> None:
        """Something that was seen."""
        self._line("[green]✓[/]", text)

    def note(self, text: str) -> None:
        """Something that this machine lacks, and what happens instead."""
        self._line("[yellow]![/]", text)

    def refused(self, text: str) -> None:
        """Something that was tried and refused, as it should be."""
        self._line("[green]✓[/]", f"refused, as it should be: {text}")

    def draw(self, picture: str) -> None:
        """Lines of characters, as they are."""
        for line in picture.splitlines():
            self._above.print(f"      {line}", markup=False, emoji=False, style="cyan", no_wrap=True, overflow="crop")

    @property
    def _above(self) -> Console:
        """What prints above the bar, while there is one."""
        return self._progress.console if self._progress else self._console

    def _line(self, mark: str, text: str) -> None:
        if self._act is not None:
            self._act.facts.append(text)
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=4, justify="right")
        table.add_column(max_width=self.width - 6, overflow="fold")
        table.add_row(mark, escape(printable(text)))
        self._above.print(table)

    def closing(self, note: str) -> None:
        """The table of all acts."""
        table = Table(
            title="what happened",
            title_justify="left",
            title_style="bold",
            width=self.width,
        )
        table.add_column("", style="bold cyan", no_wrap=True)
        table.add_column("what happened", ratio=5)
        table.add_column("what was protected, and from whom", ratio=4)
        table.add_column("time", justify="right", no_wrap=True)
        for act in self.acts:
            table.add_row(act.letter, escape(act.outcome), escape(act.protected), f"{act.seconds:.1f} s")
        table.add_row("", "", "[bold]all acts[/]", f"[bold]{sum(a.seconds for a in self.acts):.1f} s[/]")
        self._console.print()
        self._console.print(table)
        self._console.print(f"[yellow]{escape(note)}[/]", width=self.width)


def refusal(error: StrongroomError) -> str:
    """A refusal as the command line would say it, with long digests cut."""
    message = re.sub(r"([0-9a-f]{16})[0-9a-f]{48,}", r"\1...", error.message)
    return f"{message} (exit status {error.exit_code})"
