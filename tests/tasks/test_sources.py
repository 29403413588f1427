"""Data sets of the hub, read by `datasets` itself from folders that are as the hub's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from evenkeel.errors import DataError
from evenkeel.tasks import TaskSource, load_task

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def _cached_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save parts as a data set of the hub is stored: Parquet files and a card that says what they are."""

    def made(
        parts: Mapping[str, Mapping[str, Sequence[Any]]], *, names: Sequence[str] = (), configuration: str = ""
    ) -> Path:
        folder = tmp_path / "copy"
        for part, columns in parts.items():
            data = datasets.Dataset.from_dict(dict(columns))
            if names:
                data = data.cast_column("label", datasets.ClassLabel(names=list(names)))
            (folder / configuration).mkdir(parents=True, exist_ok=True)
            data.to_parquet(folder / configuration / f"{part}-00000-of-00001.parquet")
        if configuration:
            files = "".join(f"  - {{split: {part}, path: {configuration}/{part}-*}}\n" for part in parts)
            card = f"---\nconfigs:\n- config_name: {configuration}\n  data_files:\n{files}---\n"
            (folder / "README.md").write_text(card, encoding="utf-8")
        return folder

    return made


def columns(*labels: Any) -> dict[str, list[Any]]:
    return {"text": [f"text {row} of {len(labels)}" for row in range(len(labels))], "label": list(labels)}


def test_any_data_set_is_read_by_its_parts(save: Save) -> None:
    folder = save(
        {"train": columns(0, 1, 1), "validation": columns(1, 0), "test": columns(0, 1, 0, 1)}, names=["no", "yes"]
    )
    data = load_task(TaskSource(name="hub:some/reviews", data=folder))
    assert data.task.name == "hub:some/reviews"
    assert data.classes == ("no", "yes")
    assert [len(part) for part in data.scored.values()] == [2, 4]
    assert data.train["label"][:] == [0, 1, 1]


def test_a_configuration_and_columns_are_named(save: Save) -> None:
    table = {"title": ["a", "b"], "body": ["c", "d"], "stars": [1.5, 4.0]}
    folder = save({"train": table, "validation": table}, configuration="books")
    data = load_task(
        TaskSource(name="hub:some/reviews:books", data=folder, text=("title", "body"), label="stars", metric="pearson")
    )
    assert data.validation[1] == {"text": "b", "text_pair": "d", "label": 4.0}
    with pytest.raises(
        DataError, match="hub:some/reviews:films could not be loaded .*films.*; check its name and conf"
    ):
        load_task(TaskSource(name="hub:some/reviews:films", data=folder))


@pytest.mark.parametrize("secret", [{"text": ["a", "b"]}, columns(-1, -1)])
def test_a_test_part_without_labels_is_left_alone(save: Save, secret: dict[str, list[Any]]) -> None:
    folder = save({"train": columns(0, 1), "validation": columns(0, 1), "test": secret})
    assert load_task(TaskSource(name="hub:some/reviews", data=folder)).test is None


def test_a_labelled_test_part_stands_in_for_validation(save: Save) -> None:
    folder = save({"train": columns(0, 1), "test": columns(0, 1, 1, 0, 0, 1)})
    data = load_task(TaskSource(name="hub:some/reviews", data=folder))
    assert (len(data.validation), data.test) == (6, None)
    split = load_task(TaskSource(name="hub:some/reviews", data=folder, test_split="half"))
    assert [len(part) for part in split.scored.values()] == [3, 3]


def test_parts_that_are_missing_are_named(save: Save) -> None:
    folder = save({"train": columns(0, 1), "unsupervised": columns(-1, -1)}, configuration="plain")
    with pytest.raises(
        DataError, match="has the parts train, unsupervised; a part 'train' is needed, and one of valid"
    ):
        load_task(TaskSource(name="hub:some/reviews:plain", data=folder))


def test_a_data_set_that_brings_code_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "reviews.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    with pytest.raises(DataError, match="hub:some/reviews could not be loaded"):
        load_task(TaskSource(name="hub:some/reviews", data=folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"name": "hub:"}, "'hub:' names no data set; write hub:NAME or hub:NAME:CONFIGURATION"),
        ({"name": "hub:some/reviews", "data": Path("none")}, "there is no folder 'none' to read hub:some/reviews from"),
        ({"name": "hub:some/reviews"}, "hub:some/reviews could not be loaded .*a copy of it with --data"),
        (
            {"name": "hub:some/reviews", "train": Path("a.csv"), "validation": Path("a.csv")},
            "the task is 'hub:some/reviews', and files were given as well; name one source",
        ),
        ({"name": "reviews"}, "unknown task 'reviews'.*for a data set of the hub write hub:NAME"),
        ({"name": "mine", "test": Path("a.csv")}, "only the test file was given; give the training file too"),
    ],
)
def test_what_names_no_data_is_refused(source: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_task(TaskSource(**source))


def test_parts_of_a_known_task_are_asked_for_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(*labels: int) -> datasets.Dataset:
        texts = [f"text {label}" for label in labels]
        return datasets.Dataset.from_dict({"premise": texts, "hypothesis": texts, "label": list(labels)})

    def load_dataset(*names: str) -> datasets.DatasetDict:
        assert names == ("nyu-mll/glue", "mnli")
        parts = {"train": part(0, 1, 2), "validation_matched": part(0, 1), "validation_mismatched": part(2, 1)}
        return datasets.DatasetDict({**parts, "test_matched": part(-1, -1), "test_mismatched": part(-1, -1)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("EVENKEEL_GLUE_DIR", raising=False)
    data = load_task(TaskSource(name="mnli"))
    assert {name: found["label"][:] for name, found in data.scored.items()} == {
        "validation": [0, 1],
        "validation_mismatched": [2, 1],
    }
