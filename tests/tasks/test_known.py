"""The tasks known by name, read from files that are as the published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from evenkeel.errors import DataError
from evenkeel.tasks import KNOWN, METRICS, TaskSource, load_task

GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
SUPERGLUE = ("boolq", "cb", "multirc", "wic")
PAIR, NLI = ("sentence1", "sentence2"), ("premise", "hypothesis")
COLUMNS: dict[str, Sequence[str]] = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": PAIR,
    "qqp": ("question1", "question2"),
    "stsb": PAIR,
    "mnli": NLI,
    "qnli": ("question", "sentence"),
    "rte": PAIR,
    "wnli": PAIR,
    "boolq": ("question", "passage"),
    "cb": NLI,
    "multirc": ("paragraph", "question", "answer"),
    "wic": ("word", "sentence1", "sentence2", "start1"),
}


def write(folder: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def write_task(folder: Path, name: str, labels: Sequence[Any]) -> None:
    task = KNOWN[name]
    columns: dict[str, Sequence[Any]] = {
        column: [f"{column} {row}" for row in range(len(labels))] for column in COLUMNS[name]
    }
    for part in ("train", task.validation, *task.more):
        write(folder / name / f"{part}.jsonl", {**columns, "label": labels})


def test_all_are_there() -> None:
    assert [name for name in KNOWN if not name.startswith("grammar/")] == [*GLUE, *SUPERGLUE]


@pytest.mark.parametrize("name", KNOWN)
def test_they_are_complete(name: str) -> None:
    task = KNOWN[name]
    assert task.name == name
    assert task.metric in METRICS
    assert len(set(task.classes)) == len(task.classes)
    assert (len(task.classes) >= 2) == (task.problem == "classification")
    assert (task.hub == ()) == name.startswith("grammar/")


@pytest.mark.parametrize("name", [*GLUE, *SUPERGLUE])
def test_they_are_read_from_a_folder(tmp_path: Path, name: str) -> None:
    task = KNOWN[name]
    labels: list[Any] = list(range(len(task.classes))) * 2 or [0.0, 2.5, 5.0]
    write_task(tmp_path, name, labels)
    data = load_task(TaskSource(name=name, data=tmp_path))
    assert data.classes == task.classes
    assert data.train["label"][:] == labels
    assert data.validation["text"][0].startswith(f"{COLUMNS[name][0]} 0")
    assert ("text_pair" in data.train.column_names) == (len(task.text) == 2)
    assert list(data.scored) == ["validation", *task.more]
    assert data.test is None


def test_names_of_classes_stand_for_their_numbers(tmp_path: Path) -> None:
    write_task(tmp_path / "numbers", "cb", [0, 1, 2, 1])
    write_task(tmp_path / "names", "cb", ["entailment", "contradiction", "neutral", "contradiction"])
    prints = {load_task(TaskSource(name="cb", data=tmp_path / kind)).fingerprint for kind in ("numbers", "names")}
    assert len(prints) == 1


def test_booleans_are_false_and_true(tmp_path: Path) -> None:
    write_task(tmp_path, "boolq", [True, False, True])
    data = load_task(TaskSource(name="boolq", data=tmp_path))
    assert data.train["label"][:] == [1, 0, 1]
    assert data.classes == ("False", "True")


def test_columns_are_joined(tmp_path: Path) -> None:
    for name in ("multirc", "wic"):
        write_task(tmp_path, name, [0, 1])
    multirc, wic = (load_task(TaskSource(name=name, data=tmp_path)).train[0] for name in ("multirc", "wic"))
    assert (multirc["text"], multirc["text_pair"]) == ("paragraph 0", "question 0 answer 0")
    assert (wic["text"], wic["text_pair"]) == ("word 0 sentence1 0", "sentence2 0")


def test_mismatched_pairs_are_scored_beside(tmp_path: Path) -> None:
    write_task(tmp_path, "mnli", [0, 1, 2])
    whole = load_task(TaskSource(name="mnli", data=tmp_path))
    write(
        tmp_path / "mnli" / "validation_mismatched.jsonl",
        {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0]},
    )
    other = load_task(TaskSource(name="mnli", data=tmp_path))
    assert other.more["validation_mismatched"]["label"][:] == [2, 0]
    assert other.fingerprint != whole.fingerprint
    (tmp_path / "mnli" / "validation_mismatched.jsonl").unlink()
    (tmp_path / "mnli" / "validation_matched.jsonl").rename(tmp_path / "mnli" / "validation.jsonl")
    assert list(load_task(TaskSource(name="mnli", data=tmp_path)).scored) == ["validation"]


@pytest.mark.parametrize(
    ("name", "metric", "said"),
    [
        ("stsb", "accuracy", "stsb is a regression, and accuracy scores none; choose one of pearson, spearman"),
        ("mnli", "spearman", "mnli is a classification, and spearman .* one of accuracy, macro_f1, matthews$"),
        ("cola", "pearson", "one of accuracy, f1, macro_f1, matthews$"),
    ],
)
def test_a_metric_of_another_kind_is_refused(tmp_path: Path, name: str, metric: str, said: str) -> None:
    write_task(tmp_path, name, list(range(len(KNOWN[name].classes))) or [0, 1])
    with pytest.raises(DataError, match=said):
        load_task(TaskSource(name=name, data=tmp_path, metric=metric))


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, "mnli", [0, 1, 2])
    (tmp_path / "mnli" / "validation_matched.jsonl").unlink()
    with pytest.raises(DataError, match=r"holds no mnli: .*/mnli/train' and '.../validation_matched'"):
        load_task(TaskSource(name="mnli", data=tmp_path))
