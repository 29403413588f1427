from __future__ import annotations

import csv
import io
import re

import pytest
from rich.console import Console

from evenkeel.report import results_csv, results_latex, results_markdown, results_table
from evenkeel.report._tables import HEADINGS, escape_markdown

FATES = {
    "full": [0.55] * 10 + [0.7] * 10,
    "gradual-unfreezing": [0.61, 0.66] * 9 + ["diverged", "queued"],
    "component-clip": [0.7, 0.71] * 10,
}


def printed(study: tuple, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(*study))
    return console.file.getvalue()


def test_eighty_columns_are_enough(make_runs) -> None:
    lines = printed(make_runs(FATES)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["method", *HEADINGS]
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:6]}
    assert rows["full"] == ["20", "0.625", "0.077", "0.550", "0.625", "0.700", "10/20", "10/20", "0", "12"]
    assert rows["gradual-unfreezing"][0] == "19/20"
    assert rows["gradual-unfreezing"][-4:-1] == ["1/19", "1/19", "1"]


def test_majority_and_both_lines_of_failure_are_explained(make_runs) -> None:
    text = " ".join(printed(make_runs(FATES)).split())
    assert "majority score 0.550" in text
    assert "no better than chance" in text
    assert "commonest label" in text


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", "[link=https://evil]x[/link]"])
def test_names_are_no_markup(make_runs, name: str) -> None:
    assert name in printed(make_runs({name: [0.7]}), width=200)


def test_a_study_without_results_can_be_shown(make_runs) -> None:
    assert "no result yet" in printed(make_runs({"full": ["queued", "running"]}))


def test_markdown_holds_one_table_for_each_task(make_runs) -> None:
    text = results_markdown(*make_runs(FATES, tasks=["rte", "cola"]))
    assert re.findall(r"^\*\*(\w+), tiny", text, re.MULTILINE) == ["rte", "cola"]
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 * (2 + 3)
    assert {line.count("|") for line in table} == {len(HEADINGS) + 2}
    assert "| component-clip | 20 | 0.705 |" in text


@pytest.mark.parametrize("name", ["a|b", "<script>alert(1)</script>", "*a*\n\n# b", "`[x](y)`", "\\|"])
def test_markdown_names_stand_for_themselves(make_runs, name: str) -> None:
    text = results_markdown(*make_runs({name: [0.7]}, models=[name]))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert "<script" not in text
    unescaped = re.sub(r"\\([\\`*_\[\]|~$])", "", rows[-1])
    assert unescaped.count("|") == len(HEADINGS) + 2
    assert "`" not in unescaped


def test_escaped_markdown_is_on_one_line() -> None:
    assert escape_markdown("a\n\nb\r\nc") == "a b c"


def test_csv_has_all_digits_and_nothing_a_spreadsheet_would_compute(make_runs) -> None:
    hostile = '=cmd("x"),"y"'
    table = list(csv.DictReader(io.StringIO(results_csv(*make_runs({"full": [0.1 + 0.2, 0.5], hostile: ["queued"]})))))
    assert [row["method"] for row in table] == ["full", f"'{hostile}"]
    assert float(table[0]["max"]) == 0.5
    assert float(table[0]["min"]) == 0.1 + 0.2
    assert (table[0]["failed"], table[0]["metric"]) == ("2", "accuracy")
    assert (table[1]["mean"], table[1]["metric"]) == ("", "")


def test_latex_is_escaped_and_whole(make_runs) -> None:
    hostile = r"a_b\input{/etc/passwd}%&$#^~"
    text = results_latex(*make_runs({hostile: [0.6, 0.7]}))
    row = next(line for line in text.splitlines() if line.startswith("a"))
    assert row.startswith(
        r"a\_b\textbackslash{}input\{/etc/passwd\}\%\&\$\#\textasciicircum{}\textasciitilde{} & 2 & 0.650"
    )
    assert row.endswith(r" \\")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert row.count(" & ") == len(HEADINGS)
    assert r"\textless{}=maj" in text
