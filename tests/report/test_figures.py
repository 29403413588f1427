from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from evenkeel.report._figure_data import LossCurves, Strip
from evenkeel.report._figures import draw_losses, draw_scores
from evenkeel.report._style import BAD, GOOD, label

STRIP = Strip(
    method="<b>x</b>%{y}", seeds=(1, 2, 5), scores=(0.7, 0.55, 0.6), failed=(False, True, False), diverged=(3,)
)
CURVES = LossCurves(
    method="full",
    steps=(5, 10),
    seeds=(1, 2, 3),
    failed=(False, True, False),
    losses=np.array([[0.7, 0.3], [0.69, np.nan], [0.6, 0.1]]),
    unlogged=0,
)


@pytest.mark.parametrize("name", ["<b>x</b>", "<a href='https://evil'>x</a>", "a & b", "x" * 100, "<" * 100])
def test_labels_hold_no_tag_and_are_short(name: str) -> None:
    shown = label(name)
    assert "<" not in shown
    assert len(shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")) <= 44


def test_failed_runs_have_another_colour_and_symbol_and_every_point_tells_its_seed() -> None:
    figure = draw_scores([STRIP], metric="accuracy", majority=0.55)
    good, bad = figure.data[1:]
    assert (list(good.x), good.marker.color, good.marker.symbol) == ([0.7, 0.6], GOOD, "circle")
    assert (list(bad.x), bad.marker.color, bad.marker.symbol) == ([0.55], BAD, "x")
    assert bad.text == ("&lt;b&gt;x&lt;/b&gt;%{y}<br>seed 2: 0.550, failed",)
    assert "seed 5: 0.600, not failed" in good.text[1]
    assert list(figure.data[0].x) == [0.7, 0.55, 0.6]


def test_scores_show_the_majority_line_and_what_has_no_score() -> None:
    figure = draw_scores([STRIP, replace(STRIP, diverged=())], metric="accuracy", majority=0.55)
    assert [line.x0 for line in figure.layout.shapes] == [0.55]
    texts = [note.text for note in figure.layout.annotations]
    assert sum("1 diverged, no score" in text for text in texts) == 1
    assert "majority 0.550" in texts
    assert len(draw_scores([STRIP], metric="accuracy", majority=float("nan")).layout.shapes) == 0


def test_methods_stand_from_the_top_down() -> None:
    figure = draw_scores([replace(STRIP, method=name) for name in "ab"], metric="accuracy", majority=0.5)
    heights = {note.text[3]: note.y for note in figure.layout.annotations if note.text.startswith("<b>")}
    assert heights["a"] > heights["b"]


def test_no_name_stands_in_a_template() -> None:
    figures = [draw_scores([STRIP], metric="%{x}", majority=0.5), draw_losses(CURVES, span=(0, 1))]
    templates = {trace.hovertemplate for figure in figures for trace in figure.data}
    assert templates <= {None, "%{text}<extra></extra>", "%{text}<br>step %{x}: %{y:.3f}<extra></extra>"}


def test_losses_are_median_band_and_failed_lines() -> None:
    low, high, failed, median = draw_losses(CURVES, span=(0.1, 0.7)).data
    assert (low.y, high.y) == ((0.6, 0.1), (0.7, 0.3))
    assert high.fill == "tonexty"
    assert failed.y == (0.69, None)
    assert failed.line.dash
    assert failed.text[0] == "seed 2, failed"
    np.testing.assert_allclose(median.y, [0.65, 0.2])


def test_all_figures_of_losses_have_the_range_they_are_given() -> None:
    low, high = draw_losses(CURVES, span=(0.0, 2.0)).layout.yaxis.range
    assert (low, high) == pytest.approx((-0.08, 2.08))
    low, high = draw_losses(CURVES, span=(0.5, 0.5)).layout.yaxis.range
    assert low < 0.5 < high


def test_figures_are_strict_json_and_have_no_background() -> None:
    for figure in (
        draw_scores([STRIP], metric="accuracy", majority=float("nan")),
        draw_losses(CURVES, span=(0, 1)),
    ):
        read = json.loads(figure.to_json(), parse_constant=pytest.fail)
        assert read["layout"]["paper_bgcolor"] == read["layout"]["plot_bgcolor"] == "rgba(0,0,0,0)"
