"""The report: a page that needs nothing but itself, and the results as Markdown, CSV and LaTeX beside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evenkeel.errors import ReportError
from evenkeel.report._claim_tables import CLAIM_HEADINGS, claim_texts, claims_csv, claims_markdown
from evenkeel.report._claims import Claim, claims
from evenkeel.report._drill import drill
from evenkeel.report._findings import Finding, find, how_tested
from evenkeel.report._judge import Family, families
from evenkeel.report._movements import Movements
from evenkeel.report._results import Cell, cells, groups, results
from evenkeel.report._scores_file import read_scores
from evenkeel.report._tables import (
    HEADINGS,
    how_counted,
    results_csv,
    results_latex,
    results_markdown,
    table_title,
    texts,
)
from evenkeel.report._verdicts import MethodVerdict, verdicts_of
from evenkeel.report._words import last_line, number, ranges, standing
from evenkeel.study import Plan, RunRecord, StudyFolder, open_study

__all__ = ["write_report", "write_report_on_scores"]


def write_report(path: Path, *, refresh: int | None = None) -> Path:
    """Write the results of a study as a page, and its tables as Markdown, CSV and LaTeX.

    Files are written beside and then renamed, so that whoever has the page open never reads half of it.

    Args:
        path: the study's folder.
        refresh: after how many seconds a browser that shows the page reads it again, while runs are left to do.

    Returns:
        The page: one file that loads nothing else.

    Raises:
        StoreError: if there is no study.
        ReportError: if no run has a result yet, or the files cannot be written.
    """
    plan, runs, folder = open_study(path)
    if not any(run.finished for run in runs):
        raise ReportError(_nothing(path, runs))
    going_on = any(run.status in ("queued", "running") for run in runs)
    return _write_all(plan, runs, folder, what=_what(plan, runs), refresh=refresh if going_on else None)


def write_report_on_scores(path: Path, out: Path) -> tuple[Plan, list[RunRecord], list[str]]:
    """Write the report on scores that come from elsewhere: tables, verdicts, and the figures that need no more.

    Args:
        path: a CSV file; see :func:`read_scores`.
        out: a folder for the page and its tables; made if it is not there.

    Returns:
        A plan and runs that tables and verdicts are made of, and notes on what the file does not tell.

    Raises:
        DataError: if the file cannot be.
        ReportError: if the files cannot be written.
    """
    plan, runs, notes = read_scores(path)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"'{out}' cannot be made ({error.strerror}); choose another folder with --out") from error
    what = [("scores from", path.name), ("methods", ", ".join(plan.methods)), *(("note", note) for note in notes)]
    _write_all(plan, runs, StudyFolder(out), what=what)
    return plan, runs, notes


def _write_all(
    plan: Plan,
    runs: Sequence[RunRecord],
    folder: StudyFolder,
    *,
    what: Sequence[tuple[str, str]],
    refresh: int | None = None,
) -> Path:
    _write(folder.table, results_markdown(plan, runs))
    _write(folder.table.with_suffix(".csv"), results_csv(plan, runs))
    _write(folder.table.with_suffix(".tex"), results_latex(plan, runs))
    found = cells(plan, runs)
    judged = families(found)
    movements = Movements(folder)
    claimed = claims(judged, movements)
    if claimed:
        _write(folder.claims, claims_markdown(claimed))
        _write(folder.claims.with_suffix(".csv"), claims_csv(claimed))
        _write(folder.movements, movements.as_parquet())
    _write(folder.report, _page(plan, runs, folder, found, judged, claimed, what, refresh))
    return folder.report


def _nothing(path: Path, runs: Sequence[RunRecord]) -> str:
    first = next((line for run in runs if (line := last_line(run))), None)
    error = f"; the first error is: {first}" if first else ""
    return (
        f"the study in '{path}' has no finished run to report on ({standing(runs) or 'nothing was queued'}){error}; "
        "run it until at least one run has a result"
    )


def _write(path: Path, content: str | bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        with beside.open("xb") as file:  # through no link that somebody laid there
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ReportError(f"'{path}' cannot be written ({error.strerror}); free the disk or mend its rights") from error


def _page(
    plan: Plan,
    runs: Sequence[RunRecord],
    folder: StudyFolder,
    found: Sequence[Cell],
    judged: Sequence[Family],
    claimed: Sequence[Claim],
    what: Sequence[tuple[str, str]],
    refresh: int | None,
) -> str:
    from plotly.offline import get_plotlyjs  # here, and not above: tables and findings do without Plotly

    from evenkeel.report._sections import embedded, section, stability_panel
    from evenkeel.report._stability import stabilities

    loader = PackageLoader("evenkeel.report")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script, _, _ = loader.get_source(templates, "report.js")
    return templates.get_template("report.html.j2").render(
        title=f"Fine-tuning over seeds: {', '.join(task.name for task in plan.tasks)}",
        version=version("evenkeel"),
        what=what,
        refresh=refresh,
        first=plan.expanded_methods()[0],
        verdicts=_by_place(verdicts_of(judged)),
        findings=_grouped(find(runs, judged)),
        how_tested=how_tested(),
        headings=HEADINGS,
        tables=_tables(plan, runs),
        how_counted=how_counted(),
        claim_headings=CLAIM_HEADINGS,
        claims=_claims_by_place(claimed),
        stabilities=[stability_panel(one) for one in stabilities(found)],
        sections=[section(task, model, group, folder) for task, model, group in groups(found)],
        runs=[_run(cell, run) for cell in found for run in cell.runs],
        statuses=sorted({run.status for run in runs}),
        drill=embedded(drill(found, folder)),
        plotly=Markup(get_plotlyjs()),  # noqa: S704  the library's own code
        script=Markup(script),  # noqa: S704  ours
    )


def _what(plan: Plan, runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Say what was run, as pairs of a word and its text."""
    made = [run.outcome["provenance"] for run in runs if run.finished]
    tasks = [
        task.name + (f" (at most {task.max_train_samples} training examples)" if task.max_train_samples else "")
        for task in plan.tasks
    ]
    recipes = [{**training.model_dump(), **overrides} for training, overrides in plan.recipes()]
    fields = dict.fromkeys(name for recipe in recipes for name in recipe)
    recipe = [f"{name.replace('_', ' ')} {_options([one.get(name) for one in recipes])}" for name in fields]
    versions = [", ".join(f"{package} {which}" for package, which in one["versions"].items()) for one in made]
    return [
        ("tasks", ", ".join(tasks)),
        ("models", ", ".join(dict.fromkeys(run.spec.model for run in runs))),
        ("methods", ", ".join(plan.expanded_methods())),
        ("seeds", f"{ranges(plan.seeds)} ({_each(plan)})"),
        ("recipe", ", ".join(recipe)),
        ("made with", _counted(versions)),
        ("on", _counted([f"{one['device']}, {one['threads']} CPU threads, Python {one['python']}" for one in made])),
    ]


def _each(plan: Plan) -> str:
    if not plan.vary:
        return f"{len(plan.seeds)} of each"
    return f"of {' and '.join(plan.vary)} {'in all pairs' if len(plan.vary) > 1 else 'alone'}; everything else is fixed"


def _options(values: Sequence[object]) -> str:
    return " or ".join(dict.fromkeys("unset" if value is None else _option(value) for value in values))


def _option(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _by_place(found: Sequence[MethodVerdict]) -> dict[str, list[MethodVerdict]]:
    grouped: dict[str, list[MethodVerdict]] = {}
    for one in found:
        grouped.setdefault(one.where, []).append(one)
    return grouped


def _claims_by_place(found: Sequence[Claim]) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Group claims by place, each with its verdict and its texts."""
    grouped: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for one in found:
        grouped.setdefault(one.where, []).append((one.verdict, claim_texts(one)))
    return grouped


def _grouped(found: Sequence[Finding]) -> dict[str, dict[str, list[str]]]:
    """Sort findings by place, then by what they are about."""
    grouped: dict[str, dict[str, list[str]]] = {}
    for finding in found:
        grouped.setdefault(finding.where, {}).setdefault(finding.about, []).append(finding.text)
    return grouped


def _counted(values: Sequence[str]) -> str:
    """Join different values, each with the number of its runs where there is more than one."""
    counts = Counter(values)
    return next(iter(counts)) if len(counts) == 1 else "; ".join(f"{value} ({n} runs)" for value, n in counts.items())


def _tables(plan: Plan, runs: Sequence[RunRecord]) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    tables: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for row in results(plan, runs):
        tables.setdefault(table_title(row), []).append((row.method, texts(row)))
    return tables


def _run(cell: Cell, run: RunRecord) -> tuple[str, ...]:
    """Write one run for the table at the end of the page."""
    place = (cell.task, cell.model, cell.method, str(run.spec.draw), run.status)
    if not run.finished:
        return (*place, "-", "-", "-", "-", last_line(run))
    outcome = run.outcome
    score = outcome["scores"]["validation"]
    return (
        *place,
        "-" if score is None else number(score, 4),
        "failed" if outcome["failed"] else "",
        "failed" if outcome["failed_by_majority"] else "",
        number(outcome["wall_seconds"], 1),
        "always predicts one label" if outcome["constant"] else "",
    )
