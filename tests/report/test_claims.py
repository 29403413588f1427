from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from evenkeel.errors import StoreError
from evenkeel.report import write_report
from evenkeel.report._claim_tables import CLAIM_HEADINGS, claim_texts, claims_csv, claims_markdown
from evenkeel.report._claims import CLAIMS, Claim, claims
from evenkeel.report._judge import families
from evenkeel.report._movements import Movements
from evenkeel.report._results import cells
from evenkeel.study import StudyFolder, open_study, pack

RNG = np.random.default_rng(3)
GOOD = [round(float(score), 4) for score in RNG.normal(0.75, 0.01, 20)]
SHAKY = [0.55] * 8 + [round(float(score), 4) for score in RNG.normal(0.68, 0.03, 12)]
LOST = [0.55] * 20
Judge = Callable[..., dict[tuple[str, str], Claim]]


@pytest.fixture
def judge(make_study: Callable[..., Path]) -> Judge:
    """Judge a study; ``records`` gives parts of the runs' records by method, a function of the seed."""

    def found(
        fates: dict[str, Sequence[Any]], tables: Sequence[str] = (), **records: Any
    ) -> dict[tuple[str, str], Claim]:
        plan, runs, folder = open_study(make_study(fates, tables=tables))
        more = {name.replace("_", "-"): record for name, record in records.items()}
        runs = [
            replace(run, outcome={**run.outcome, **more[run.spec.method](run.spec.seed)})
            if run.spec.method in more
            else run
            for run in runs
        ]
        judged = claims(families(cells(plan, runs)), Movements(folder))
        assert len({(one.claim, one.method) for one in judged}) == len(judged)
        return {(one.claim, one.method): one for one in judged}

    return found


def test_instability_is_failing_with_some_seeds_and_not_with_others(judge: Judge) -> None:
    found = judge({"full": SHAKY, "bert-adam": LOST, "full:correct_bias=false": GOOD})
    shaky, lost, good = (found["unstable", name] for name in ("full", "bert-adam", "full:correct_bias=false"))
    assert (shaky.verdict, shaky.effect, shaky.n) == ("held", 0.4, 20)
    assert shaky.interval[0] > 0.2
    assert (lost.verdict, lost.effect) == ("cannot be told", 1.0)
    assert lost.reason == "no more runs beat chance than the 5 % that do so by chance"
    assert (good.verdict, good.effect) == ("not shown", 0.0)


def test_clipping_that_helps_holds_and_that_harms_is_contradicted(judge: Judge) -> None:
    helps = judge({"full": SHAKY, "component-clip": GOOD})
    assert {helps[name, "component-clip"].verdict for name in ("generalisation", "steadier", "safer")} == {"held"}
    assert helps["generalisation", "component-clip"].effect == pytest.approx(np.mean(GOOD) - np.mean(SHAKY))
    assert helps["steadier", "component-clip"].effect == pytest.approx(np.std(GOOD) / np.std(SHAKY))
    assert helps["safer", "component-clip"].effect == pytest.approx(-0.4)
    assert helps["safer", "component-clip"].test == "McNemar p = .008"


def test_the_other_way_round_is_contradicted(judge: Judge) -> None:
    harms = judge({"full": GOOD, "component-clip": SHAKY})
    assert {harms[name, "component-clip"].verdict for name in ("generalisation", "steadier", "safer")} == {
        "contradicted"
    }


@pytest.mark.parametrize(("step", "verdict"), [(-0.01, "held"), (0.01, "contradicted"), (0.0, "not shown")])
def test_a_lower_threshold_may_be_better_or_worse_all_along(judge: Judge, step: float, verdict: str) -> None:
    thresholds = ["", ":max_norm=0.01", ":max_norm=.inf", ":max_norm=1.0"]
    ranks = [1, 0, 3, 2]
    noise = np.random.default_rng(5).normal(0, 0.005, (4, 20))
    fates = {
        f"component-clip{text}": [score + step * rank + shift for score, shift in zip(GOOD, row, strict=True)]
        for text, rank, row in zip(thresholds, ranks, noise, strict=True)
    }
    found = judge({"full": GOOD, **fates, "component-clip:max_norm=2.0,unclipped=head": GOOD})["dose", "component-clip"]
    assert (found.verdict, found.n) == (verdict, 20)
    assert "4 thresholds" in found.unit
    assert (found.effect < -0.5, found.effect > 0.5) == (verdict == "held", verdict == "contradicted")
    assert found.interval[0] < found.effect < found.interval[1]


TWO = {f"component-clip:max_norm={threshold}": GOOD for threshold in (0.1, 1.0)}


def test_two_thresholds_are_no_trend(judge: Judge) -> None:
    assert ("dose", "component-clip") not in judge({"full": GOOD, **TWO})


def test_a_trend_needs_seeds_at_each_threshold(judge: Judge) -> None:
    few = judge({"full": GOOD, **TWO, "component-clip": ["queued"] * 16 + GOOD[16:]})["dose", "component-clip"]
    assert (few.verdict, few.reason) == ("cannot be told", "4 seeds have a score at each threshold")


def test_no_difference_is_not_shown(judge: Judge) -> None:
    same = judge({"full": GOOD, "component-clip": [score + 0.001 * (-1) ** i for i, score in enumerate(GOOD)]})
    assert {same[name, "component-clip"].verdict for name in ("generalisation", "steadier", "safer")} == {"not shown"}


def test_where_nothing_is_learnt_nothing_is_told(judge: Judge) -> None:
    found = judge({"full": LOST, "component-clip": [0.551] * 20})
    for name in ("generalisation", "steadier", "safer"):
        assert found[name, "component-clip"].verdict == "cannot be told"


def test_times_and_losses_come_from_the_records(judge: Judge) -> None:
    def record(spread: float, area: float) -> Any:
        noise = np.random.default_rng(1).normal(0, 0.002, 21)
        return lambda seed: {
            "racing": {"half_time_spread": spread + noise[seed]}, "convergence": {"loss_area": area + noise[-seed]}
        }  # fmt: skip

    found = judge({"full": GOOD, "component-clip": GOOD}, full=record(0.2, 0.4), component_clip=record(0.15, 0.45))
    together, sooner = found["together", "component-clip"], found["convergence", "component-clip"]
    assert (together.verdict, together.n) == ("held", 20)
    assert together.effect == pytest.approx(-0.05)
    assert together.interval[0] < -0.0499 < together.interval[1] + 1e-3
    assert (sooner.verdict, round(sooner.effect, 3)) == ("contradicted", 0.05)


def test_records_without_such_numbers_cannot_tell(judge: Judge) -> None:
    found = judge({"full": GOOD, "component-clip": GOOD})
    assert found["together", "component-clip"].reason == "0 runs or pairs are too few"


def test_going_top_down(judge: Judge) -> None:
    found = judge({"full": GOOD, "gradual-unfreezing": [score - 0.1 for score in GOOD]}, tables=["telemetry"])
    worse = found["top-down", "gradual-unfreezing"]
    assert (worse.verdict, round(worse.effect, 3)) == ("held", -0.1)
    moves = found["top-down moves less", "gradual-unfreezing"]  # both have the same telemetry here
    assert (moves.verdict, moves.effect, moves.interval) == ("not shown", 1.0, (1.0, 1.0))
    assert found["top-down stays", "gradual-unfreezing"].verdict == "cannot be told"


def test_components_that_race_and_gradients_that_vanish(judge: Judge) -> None:
    found = judge(
        {"full": SHAKY},
        tables=["telemetry"],
        full=lambda seed: {"health": {"vanishing": seed <= 8}, "racing": {"half_time_spread": 0.1 + 0.001 * seed}},
    )
    racing, order, vanishing = (found[name, "full"] for name in ("racing", "order", "vanishing"))
    assert (racing.verdict, racing.n) == ("held", 12)
    assert racing.test == "Friedman p < .001, Kendall's W 1.00"
    assert racing.effect == pytest.approx(0.1 + 0.001 * np.mean(range(9, 21)))
    assert (order.verdict, round(order.effect, 2)) == ("contradicted", 1.0)  # upper layers are made to be slower
    assert (vanishing.verdict, vanishing.effect, vanishing.test) == ("held", 1.0, "Fisher p < .001")
    assert "failed runs (8 of 8) less others (0 of 12)" in vanishing.unit


def test_studies_without_full_first_say_nothing(judge: Judge) -> None:
    assert judge({"component-clip": GOOD, "full": SHAKY}) == {}


def test_mixes_and_clipping_that_is_off_are_not_the_papers(judge: Judge) -> None:
    found = judge({"full": GOOD, "component-clip+llrd": GOOD, "component-clip:max_norm=.inf": GOOD})
    assert {name for name, _ in found} == {"unstable", "racing", "order", "vanishing"}


def test_few_and_unfinished_runs_cannot_tell(judge: Judge) -> None:
    found = judge({"full": [0.7, "queued", 0.5, "error"], "component-clip": [0.7, 0.6, 0.5, "running"]})
    assert {one.verdict for one in found.values()} == {"cannot be told"}
    assert all(one.reason for one in found.values())


def test_tables_have_every_claim_and_are_escaped() -> None:
    made = [
        Claim(where="<b>|task", claim=name, method="=cmd", verdict="held", effect=0.12345, interval=(0.1, math.inf))
        for name in CLAIMS
    ]
    assert len(claim_texts(made[0])) == len(CLAIM_HEADINGS)
    written = claims_markdown(made)
    assert "<b>" not in written
    assert written.count("0.123 | 0.100 to infinite") == len(CLAIMS)
    rows = list(csv.DictReader(io.StringIO(claims_csv(made))))
    assert [row["claim"] for row in rows] == list(CLAIMS)
    assert rows[0]["method"] == "'=cmd"
    assert (rows[0]["effect"], rows[0]["low"], rows[0]["high"]) == ("0.12345", "0.1", "inf")


def test_the_report_has_them(make_study: Callable[..., Path]) -> None:
    path = make_study({"full": SHAKY, "component-clip": GOOD})
    page = write_report(path).read_text(encoding="utf-8")
    assert "clipping components fails less often" in page
    assert 'class="held"' in page
    assert "clipping components fails less often" in StudyFolder(path).claims.read_text(encoding="utf-8")
    assert (path / "claims.csv").is_file()


def test_a_packed_study_is_judged_as_before(make_study: Callable[..., Path], tmp_path: Path) -> None:
    whole = make_study({"full": SHAKY, "gradual-unfreezing": GOOD}, tables=["telemetry"])
    write_report(whole)
    judged = StudyFolder(whole).claims.read_bytes()
    packed = pack(whole, tmp_path / "packed")
    assert packed.movements.is_file()
    assert not (packed.path / "runs").exists()
    write_report(packed.path)
    assert packed.claims.read_bytes() == judged
    assert b"successful runs with telemetry are too few" not in judged
    packed.movements.unlink()
    write_report(packed.path)
    assert b"successful runs with telemetry are too few" in packed.claims.read_bytes()


@pytest.mark.parametrize("kind", ["text", "other columns", "ragged", "link"])
def test_movements_that_no_report_wrote_are_refused(make_study: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    path = make_study({"full": SHAKY}, tables=["telemetry"])
    write_report(path)
    kept = StudyFolder(path).movements
    table = pa.parquet.read_table(kept)
    assert table.num_rows == len(SHAKY)
    if kind == "text":
        kept.write_text("no table", encoding="utf-8")
    elif kind == "other columns":
        pa.parquet.write_table(table.drop_columns("run"), kept)
    elif kind == "ragged":
        few = pa.array([[]] * table.num_rows, pa.list_(pa.float64()))
        pa.parquet.write_table(table.set_column(2, "half_times", few), kept)
    else:
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="not what a report wrote there.*remove it"):
        write_report(path)
