"""A bar on the terminal for what takes long; nothing where standard error is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from strongroom.cli import output
from strongroom.errors import printable


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Callable[[str, int], None]]:
    """Gives a function that is told of a name, and of how many more bytes of it are done.

    Args:
        what: in a word.
        total: bytes in all, if that is known.
    """
    columns = (
        TextColumn(f"[dim]{escape(what)}[/]"),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.description}[/]"),
    )
    console = output.stderr
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def advance(name: str, count: int) -> None:
            progress.update(task, advance=count, description=escape(printable(name)[-40:]))

        yield advance
