"""The results as a table: in the terminal, in Markdown, and as texts for the page."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from evenkeel.report._results import Row, results
from evenkeel.report._words import number
from evenkeel.study import Plan, RunRecord

__all__ = [
    "HEADINGS",
    "as_csv",
    "escape_markdown",
    "how_counted",
    "results_csv",
    "results_latex",
    "results_markdown",
    "results_table",
    "table_title",
    "texts",
]

HEADINGS = ("runs", "mean", "std", "min", "median", "max", "failed", "<=maj", "div.", "s/run")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip
_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


def texts(row: Row) -> tuple[str, ...]:
    """Write a row's numbers, one for each of ``HEADINGS``."""
    of = f"/{row.finished}"
    return (
        str(row.total) if row.finished == row.total else f"{row.finished}/{row.total}",
        *(number(value) for value in (row.mean, row.std, row.min, row.median, row.max)),
        f"{row.failed}{of}" if row.finished else "-",
        f"{row.failed_majority}{of}" if row.finished else "-",
        str(row.diverged) if row.finished else "-",
        number(row.wall_seconds, 0 if row.wall_seconds >= 9.95 else 1),
    )


def table_title(row: Row) -> str:
    """Name the task, model, metric and majority score that a group of rows shares."""
    if row.metric is None:
        return f"{row.task}, {row.model}: no result yet"
    return f"{row.task}, {row.model}: {row.metric}; majority score {number(row.majority)}"


def how_counted() -> str:
    """Explain the columns in plain words."""
    return (
        "Scores of the validation part; std over seeds (n - 1); s/run: median seconds. failed: predictions agree with "
        "the labels no better than chance (one-sided test, p > .05). <=maj: not above the majority score, that of "
        "always giving the same answer (the commonest label, where labels are classes); depending on the metric, this "
        "line fails runs that learnt or passes runs that did not. div.: diverged, the loss or the predictions became "
        "NaN or infinite; such a run has no score and counts as failed by both lines."
    )


def results_table(plan: Plan, runs: Iterable[RunRecord]) -> Table:
    """Return the results for a terminal of at least 80 columns.

    Args:
        plan: the plan.
        runs: the runs of its store.

    Returns:
        A grid with one table for each task and model, the columns explained below.
    """
    grid = Table.grid()
    grid.add_column()
    for members in _grouped(results(plan, runs)):
        grid.add_row(Text(table_title(members[0]), style="bold"))
        grid.add_row(_terminal(members))
    grid.add_row(Text(how_counted(), style="dim"))
    return grid


def results_markdown(plan: Plan, runs: Iterable[RunRecord]) -> str:
    """Return the results as Markdown.

    Args:
        plan: the plan.
        runs: the runs of its store.

    Returns:
        A table for each task and model, and a paragraph on what is counted how. Names are escaped.
    """
    blocks = []
    for members in _grouped(results(plan, runs)):
        rows = [
            ("method", *map(escape_markdown, HEADINGS)),
            ("---", *["---:"] * len(HEADINGS)),
            *((escape_markdown(row.method), *texts(row)) for row in members),
        ]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        blocks.append(f"**{escape_markdown(table_title(members[0]))}**\n\n{lines}")
    return "\n\n".join([*blocks, escape_markdown(how_counted())]) + "\n"


def results_csv(plan: Plan, runs: Iterable[RunRecord]) -> str:
    """Return the results as CSV, all digits, a row for each task, model and method.

    Args:
        plan: the plan.
        runs: the runs of its store.

    Returns:
        The table, whose columns are the fields of :class:`Row`; what there is no number for is empty.
    """
    names = [field.name for field in dataclasses.fields(Row)]
    return as_csv(names, [[getattr(row, name) for name in names] for row in results(plan, runs)])


def as_csv(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV, all digits.

    Args:
        names: names of the columns.
        rows: their values.

    Returns:
        The text; None and NaN are empty.
    """
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(names)
    table.writerows([_cell(value) for value in row] for row in rows)
    return written.getvalue()


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    # A spreadsheet would compute a text that begins so.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def results_latex(plan: Plan, runs: Iterable[RunRecord]) -> str:
    r"""Return the results as LaTeX, a ``tabular`` with the rules of ``booktabs`` for each task and model.

    Args:
        plan: the plan.
        runs: the runs of its store.

    Returns:
        The tables; what is counted how stands in a comment before them.
    """
    lines = [r"% \usepackage{booktabs}", f"% {how_counted()}"]
    for members in _grouped(results(plan, runs)):
        heads = " & ".join(["method", *map(escape_latex, HEADINGS)])
        rows = [" & ".join([escape_latex(row.method), *map(escape_latex, texts(row))]) for row in members]
        lines += [
            "",
            f"% {' '.join(table_title(members[0]).split())}",
            rf"\begin{{tabular}}{{l{'r' * len(HEADINGS)}}}",
            r"\toprule",
            rf"{heads} \\",
            r"\midrule",
            *(rf"{row} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    r"""Make a text stand for itself in LaTeX.

    Args:
        text: any text, such as a method's name.

    Returns:
        The escaped text, on one line.

    Example:
        >>> print(escape_latex("max_norm=5% <&>"))
        max\_norm=5\% \textless{}\&\textgreater{}
    """
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _terminal(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("method", overflow="fold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        *before, failed, majority, diverged, seconds = texts(row)
        table.add_row(
            Text(row.method), *before, Text(failed, style="bold red" if row.failed else ""), majority, diverged, seconds
        )
    return table


def _grouped(rows: Iterable[Row]) -> list[list[Row]]:
    return [list(members) for _, members in itertools.groupby(rows, key=lambda row: (row.task, row.model))]


def escape_markdown(text: str) -> str:
    r"""Make a text stand for itself in Markdown, inside a table too.

    Args:
        text: any text, such as a method's name.

    Returns:
        The escaped text, on one line.

    Example:
        >>> print(escape_markdown("a|b <script>"))
        a\|b &lt;script&gt;
    """
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)
