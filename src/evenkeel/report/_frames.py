"""A study for a notebook: its records as pandas frames, its figures as Plotly objects."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from evenkeel.report._results import cells, groups
from evenkeel.report._verdicts import MethodVerdict, verdicts
from evenkeel.study import Plan, RunRecord, StudyFolder, open_study

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["LoadedStudy", "load_study"]


@final
class LoadedStudy:
    """A study that was read; frames and figures are made when they are first asked for.

    Attributes:
        plan: the plan.
        folder: where it lies.
        records: its runs, in the plan's order.
    """

    def __init__(self, plan: Plan, records: list[RunRecord], folder: StudyFolder) -> None:
        """Hold what was read."""
        self.plan, self.records, self.folder = plan, records, folder

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each run, whatever its status, indexed by ``run``.

        Columns: ``task``, ``model``, ``method``, ``recipe`` (what differs in it), ``seed``, ``init_seed``,
        ``order_seed``, ``split_seed``, ``status``, ``metric``, ``score`` (validation), a column for every other part
        that was scored (``score_test``), ``majority``, ``failed``, ``failed_by_majority``, ``constant``, ``steps``,
        ``wall_seconds``, ``cpu_seconds``, ``attempts``.
        """
        import pandas as pd

        rows = [
            _row(cell.plain_model, cell.recipe, run) for cell in cells(self.plan, self.records) for run in cell.runs
        ]
        return pd.DataFrame(rows).set_index("run") if rows else pd.DataFrame()

    @cached_property
    def telemetry(self) -> pd.DataFrame:
        """What was recorded of each component: ``run``, ``task``, ``method``, ``seed``, and docs/measures.md."""
        return self._table("telemetry")

    @cached_property
    def log(self) -> pd.DataFrame:
        """Loss and learning rate by step: ``run``, ``task``, ``method``, ``seed``, and the table's columns."""
        return self._table("log")

    @cached_property
    def course(self) -> pd.DataFrame:
        """Scores in training, where there are any: ``run``, ``task``, ``method``, ``seed``, and the table's columns."""
        return self._table("course")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """What was predicted for each example: ``run``, ``task``, ``method``, ``seed``, and the table's columns."""
        return self._table("predictions")

    @cached_property
    def verdicts(self) -> list[MethodVerdict]:
        """Each method's verdict against the first one of the plan."""
        return verdicts(self.plan, self.records)

    @cached_property
    def figures(self) -> dict[str, go.Figure]:
        """The figures of the report by name: ``"rte, tiny: scores"``, ``"rte, tiny: loss: full: 4 successful ..."``."""
        from evenkeel.report._sections import section, stability_panel
        from evenkeel.report._stability import stabilities

        found = cells(self.plan, self.records)
        named = [("stability", stability_panel(one)) for one in stabilities(found)]
        for task, model, members in groups(found):
            made = section(task, model, members, self.folder)
            named += [(made.title, panel) for panel in made.panels()]
        return {
            ": ".join(filter(None, (where, panel.name, panel.title))): panel.drawn
            for where, panel in named
            if panel.drawn is not None
        }

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        frames = []
        for run in self.records:
            table = self.folder.read_run(run.id, name) if run.finished else None
            if table is not None:
                frame = table.to_pandas()
                about = {"run": run.id, "task": run.spec.task, "method": run.spec.method, "seed": run.spec.seed}
                for place, (word, value) in enumerate(about.items()):
                    frame.insert(place, word, value)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def load_study(path: str | Path) -> LoadedStudy:
    """Read a study; a running driver is not disturbed, and sees nothing of what is done with the frames.

    Args:
        path: the study's folder.

    Returns:
        The study as it is now.

    Raises:
        StoreError: if there is none.

    Example:
        >>> import evenkeel as ek
        >>> ek.load_study("no/such/folder")
        Traceback (most recent call last):
            ...
        evenkeel.errors.StoreError: 'no/such/folder' holds no study; give the folder that was named by --out
    """
    return LoadedStudy(*open_study(Path(path)))


def _row(model: str, recipe: str, run: RunRecord) -> dict[str, Any]:
    spec, outcome = run.spec, run.outcome
    scores, majority = outcome.get("scores") or {}, outcome.get("majority") or {}
    others = {f"score_{part}": score for part, score in scores.items() if part != "validation"}
    return {
        "run": run.id,
        "task": spec.task,
        "model": model,
        "method": spec.method,
        "recipe": recipe,
        "seed": spec.seed,
        "init_seed": spec.init_seed,
        "order_seed": spec.order_seed,
        "split_seed": spec.split_seed,
        "status": run.status,
        "metric": outcome.get("metric"),
        "score": scores.get("validation"),
        **others,
        "majority": majority.get("validation"),
        **{name: outcome.get(name) for name in ("failed", "failed_by_majority", "constant", "steps")},
        **{name: outcome.get(name) for name in ("wall_seconds", "cpu_seconds")},
        "attempts": run.attempts,
    }
