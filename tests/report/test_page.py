from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from evenkeel.errors import ReportError, StoreError
from evenkeel.report import results_markdown, write_report
from evenkeel.study import StudyFolder, open_study

HOSTILE = "<script>alert(1)</script>"
FATES = {
    "full": [0.55, 0.7, 0.5, "diverged", "error", "queued"],
    HOSTILE: [0.7, 0.72, 0.5, 0.71, "running", "lost"],
    '<a href="https://evil">x</a>': [0.7] * 6,
}


class Page(HTMLParser):
    """Reads a page as a browser does: its elements, and its text without scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.elements[-1][0] if self.elements else ""
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem is None and tag != "style":
            self.words.append(data)


def read(path) -> Page:
    return Page(write_report(path).read_text(encoding="utf-8"))


@pytest.fixture
def page(make_study) -> Page:
    return read(make_study(FATES, models=[HOSTILE]))


def test_the_page_loads_nothing(page: Page) -> None:
    loading = {"src", "srcset", "href", "data", "poster", "action", "background"}
    assert [(tag, attrs) for tag, attrs in page.elements if loading & set(attrs)] == []
    assert {tag for tag, _ in page.elements} & {"link", "iframe", "object", "embed", "img", "base"} == set()
    (policy,) = [
        attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'")


def test_names_are_text(page: Page) -> None:
    scripts = [attrs for tag, attrs in page.elements if tag == "script"]
    figures = sum(attrs.get("class") == "figure" for _, attrs in page.elements)
    assert len(scripts) == figures + 4  # Plotly, what draws the figures, values of the maps, details of the runs
    assert not any(tag == "a" for tag, _ in page.elements)
    assert not any(tag == "b" for tag, _ in page.elements)
    assert f"{HOSTILE} against full" in page.text
    assert '<a href="https://evil">x</a>' in page.text
    assert "ValueError: <b>no such thing</b>" in page.text


def test_plotly_is_there_once_and_figures_are_its_json(page: Page) -> None:
    assert sum("plotly.js v" in script[:200] for script in page.scripts) == 1
    figures = [json.loads(script) for script in page.scripts if script.startswith('{"data"')]
    assert len(figures) == 2 + 3 + 5  # scores, budget; losses; maps: the last method has no failed run


def test_the_page_says_what_was_run_and_found(page: Page) -> None:
    assert "14 of 18 runs have a result (1 queued, 1 running, 1 ended in an error, 1 lost" in page.text
    assert "1 to 6 (6 of each)" in page.text
    assert "learning rate 2e-05, epochs 3.0" in page.text
    assert "torch 2.13.0" in page.text
    assert "majority score 0.550" in page.text
    assert "No failed run to show." in page.text
    assert "All 18 runs" in page.text


def test_every_run_has_a_line(page: Page) -> None:
    assert page.text.count("rte <script>alert(1)</script> full ") == 6
    assert "full 1 done 0.5500 failed failed 12.5 always predicts one label" in page.text
    assert "full 4 diverged - failed failed 12.5" in page.text


@pytest.mark.parametrize("fates", [{"full": [0.7]}, {"full": [0.5] * 5, "b": [0.5] * 5}, {"full": ["diverged"]}])
def test_small_and_failed_studies_have_a_page(make_study, fates) -> None:
    assert "rte, tiny" in read(make_study(fates)).text


def test_missing_tables_are_said_and_no_error(make_study) -> None:
    text = read(make_study({"full": [0.7, 0.5]}, tables=("log",))).text
    assert "2 finished runs left no record of gradient norms, or one that cannot be read." in text


def test_tables_stand_beside_and_nothing_else(make_study) -> None:
    path = make_study({"full": [0.7]})
    assert write_report(path) == StudyFolder(path).report
    plan, runs, folder = open_study(path)
    assert folder.table.read_text(encoding="utf-8") == results_markdown(plan, runs)
    made = {"results.md", "results.csv", "results.tex", "claims.md", "claims.csv", "movements.parquet", "report.html"}
    assert {entry.name for entry in path.iterdir()} == {"study.sqlite", "runs", *made}


def test_a_report_is_the_same_every_time(make_study) -> None:
    path = make_study({"full": [0.7, 0.5] * 5, "component-clip": [0.7, 0.72] * 5})
    assert write_report(path).read_bytes() == write_report(path).read_bytes()


def test_no_finished_run_is_an_error_that_says_how_they_stand(make_study) -> None:
    path = make_study({"full": ["queued", "error", "error", "running"]})
    with pytest.raises(
        ReportError, match=r"1 queued, 1 running, 2 ended in an error\); the first error is: ValueError"
    ):
        write_report(path)
    assert not StudyFolder(path).report.exists()


def test_no_study_is_an_error(tmp_path) -> None:
    with pytest.raises(StoreError):
        write_report(tmp_path)


def test_a_page_that_cannot_be_written_is_an_error_and_leaves_nothing(make_study) -> None:
    path = make_study({"full": [0.7]})
    StudyFolder(path).report.mkdir()
    with pytest.raises(ReportError, match=r"report\.html' cannot be written"):
        write_report(path)
    assert not any(entry.name.startswith(".report") for entry in path.iterdir())


def test_verdicts_come_first_and_details_hold_every_run(page: Page, make_study) -> None:
    text = page.text
    words = ("Verdicts", "Results", "Scores over seeds", "What a budget", "Training loss", "Which components", "All 18")
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    (drill,) = [json.loads(script) for script in page.scripts if script.startswith('{"runs"')]
    assert len(drill["runs"]) == 18
    first = drill["runs"][0]
    assert first["name"] == f"rte, {HOSTILE}, full, seed 1"
    assert ["status", "done"] in first["said"]
    assert len(first["loss"][0]) == len(first["loss"][1]) == 60
    assert ["learning rate", "2e-05"] in drill["texts"][first["recipe"]]
    assert ["torch", "2.13.0"] in drill["texts"][first["made"]]
    assert "ValueError: <b>no such thing</b>" in drill["runs"][4]["error"]


def test_a_page_of_a_study_that_goes_on_reads_itself_again(make_study) -> None:
    path = make_study({"full": [0.7, "running"]})
    again = [attrs for tag, attrs in Page(write_report(path, refresh=7).read_text(encoding="utf-8")).elements
             if attrs.get("http-equiv") == "refresh"]  # fmt: skip
    assert [attrs["content"] for attrs in again] == ["7"]
    assert 'http-equiv="refresh"' not in write_report(path).read_text(encoding="utf-8")


def test_a_finished_study_does_not(make_study) -> None:
    assert 'http-equiv="refresh"' not in write_report(make_study({"full": [0.7]}), refresh=7).read_text(
        encoding="utf-8"
    )
