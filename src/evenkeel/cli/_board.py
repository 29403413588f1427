"""How a study stands, for the eye: a line of counts and a table of methods, within 80 columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from evenkeel.cli._standing import WITH_RESULT, Place, Standing, Tally
from evenkeel.cli._words import duration, number
from evenkeel.study import Status

__all__ = ["Board", "counts", "methods_table"]

_STATES: tuple[Status, ...] = ("running", "queued", "error", "lost")
_HEADING_WIDTH = 34  # what all other columns leave of 80
_BESIDE = 8  # lines of the screen that are not rows of the table


def counts(standing: Standing, left: float | None) -> str:
    """Say in a line how many runs there are of what, and how long the rest takes.

    Args:
        standing: how the study stands.
        left: seconds that the rest takes; None where it is not known.

    Returns:
        The line.
    """
    done, total = standing.counted(*WITH_RESULT), standing.counted()
    said = [f"{done} of {total} runs have a result", f"{standing.failed} failed"]
    said += [f"{n} {state}" for state in ("running", "error", "lost") if (n := standing.counted(state))]
    if standing.counted("queued", "running"):
        said.append("time left not known yet" if left is None else f"about {duration(left)} left")
    return ", ".join(said)


def methods_table(standing: Standing, *, most_rows: int | None = None) -> Table:
    """Show each method so far.

    Args:
        standing: how the study stands.
        most_rows: rows that there is room for; None shows all.

    Returns:
        For each task and model a heading, for each of its methods the runs, the mean and spread of the scores, those
        that failed, and how many have which status.
    """
    states = [state for state in _STATES if standing.counted(state)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold", min_width=_HEADING_WIDTH)
    for heading in ("runs", "mean", "std", "failed", *states):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = _rows(standing, states)
    for row in rows[:most_rows]:
        table.add_row(*row)
    if most_rows is not None and len(rows) > most_rows:
        table.add_row(Text(f"... {len(rows) - most_rows} more", style="dim"))
    return table


def _rows(standing: Standing, states: list[Status]) -> list[list[Text]]:
    rows = []
    for (task, model), group in itertools.groupby(standing.places.items(), key=lambda item: item[0][:2]):
        members = list(group)
        metric = next((f": {tally.metric}" for _, tally in members if tally.metric), "")
        rows.append([Text(f"{task}, {model}{metric}", style="bold")])
        rows += [_row(place, tally, states) for place, tally in members]
    return rows


def _row(place: Place, tally: Tally, states: list[Status]) -> list[Text]:
    failed = f"{tally.failed}/{tally.finished}" if tally.finished else "-"
    return [
        Text(place.method),
        Text(f"{tally.finished}/{tally.total}"),
        Text(number(tally.mean if tally.scores else math.nan)),
        Text(number(tally.std)),
        Text(failed, style="bold red" if tally.failed else ""),
        *(Text(str(tally.status[state] or "")) for state in states),
    ]


class Board:
    """What stands on the screen while a study runs; drawn anew whenever the screen is."""

    def __init__(self, standing: Standing, *, left: Callable[[], float | None], note: str = "") -> None:
        """Show ``standing`` as it is at the time.

        Args:
            standing: how the study stands.
            left: seconds that the rest takes.
            note: a line below.
        """
        self.standing, self._left, self._note = standing, left, note

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw a bar, the counts, the table and the note, no higher than the screen."""
        done = self.standing.counted(*WITH_RESULT)
        yield ProgressBar(total=max(1, self.standing.counted()), completed=done, width=min(options.max_width, 80))
        yield Segment.line()
        yield Text(counts(self.standing, self._left()))
        yield Text()
        yield methods_table(self.standing, most_rows=max(3, options.size.height - _BESIDE))
        if self._note:
            yield Text(self._note, style="dim")
