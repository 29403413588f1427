from __future__ import annotations

from pathlib import Path

import pytest

from evenkeel.errors import DataError
from evenkeel.report import findings, results, write_report_on_scores
from evenkeel.report._scores_file import read_scores


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rows = [f"{method},{seed},{0.7 + seed / 1000 - (method == 'b') * 0.1},rte" for method in "ab" for seed in range(12)]
    return write(tmp_path / "scores.csv", "method,seed,score,task", *rows, "b,99,nan,rte")


def test_scores_from_elsewhere_are_judged_like_ours(scores: Path) -> None:
    plan, runs, notes = read_scores(scores)
    first, second = results(plan, runs)
    assert (first.task, first.method, first.n, first.failed) == ("rte", "a", 12, 0)
    assert (second.method, second.n, second.finished, second.diverged, second.failed) == ("b", 12, 13, 1, 1)
    assert first.mean - second.mean == pytest.approx(0.1)
    assert any("difference -0.100" in sentence and sentence.endswith("lower.") for sentence in findings(plan, runs))
    assert notes == ["the file has no column failed: a run counts as failed if it has no score"]


def test_columns_that_are_there_are_used(tmp_path: Path) -> None:
    header = "\ufeffscore, method, failed, majority, seconds, metric, model"
    path = write(tmp_path / "x.csv", header, "0.5, a, yes, .6, 3, f1, m", "0.7, a, 0, .6, 5, f1, m")
    plan, runs, notes = read_scores(path)
    (row,) = results(plan, runs)
    assert (row.task, row.model, row.metric, row.failed, row.failed_majority) == ("x", "m", "f1", 1, 1)
    assert (row.majority, row.wall_seconds) == (0.6, 4)
    assert notes == ["the file has no column seed, so runs are not compared in pairs"]


def test_without_seeds_no_two_methods_share_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "method,score", *["a,0.7"] * 6, *["b,0.6"] * 6)
    _, runs, _ = read_scores(path)
    seeds = {method: {run.spec.seed for run in runs if run.spec.method == method} for method in "ab"}
    assert [len(found) for found in seeds.values()] == [6, 6]
    assert not seeds["a"] & seeds["b"]


def test_the_page_shows_what_there_is(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_report_on_scores(scores, out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "scores from" in page
    assert "worse than a" in page
    assert {path.name for path in out.iterdir()} == {"report.html", "results.md", "results.csv", "results.tex"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["method,seed", "a,1"], r"has the columns method, seed, and lacks score"),
        (["method,score,sede", "a,1,1"], r"unknown column 'sede': did you mean 'seed'\?"),
        (["method,score"], r"has a header and no rows"),
        (["method,score", "a,high"], r"line 2: score is 'high', and no number"),
        (["method,score,seed", "a,1,x"], r"line 2: the seed is 'x'"),
        (["method,score,failed", "a,1,perhaps"], r"line 2: failed is 'perhaps'; write 1 or 0"),
        (["method,score", ",1"], r"line 2: the method is empty"),
        (["method,score,seed", "a,1,1", "a,2,1"], r"has a task, model, method and seed twice"),
        ([""], r"has the columns none, and lacks method, score"),
    ],
)
def test_what_cannot_be_is_said_with_its_line(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_scores(write(tmp_path / "x.csv", *lines))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_scores(tmp_path / "x.csv")
