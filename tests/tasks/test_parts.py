"""A held-out test part: a file, or half of validation."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from evenkeel.errors import DataError
from evenkeel.tasks import TaskData, TaskSource, load_task


def write(path: Path, labels: list[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label"), *((f"{path.stem} {n}", label) for n, label in enumerate(labels))]
        )
    return path


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Path]:
    return {
        "train": write(tmp_path / "train.csv", ["a", "b"]),
        "validation": write(tmp_path / "seen.csv", ["a", "b"] * 11),
    }


def test_half_of_validation_is_held_out_the_same_way_every_time(source: dict[str, Path]) -> None:
    whole = load_task(TaskSource(name="mine", **source))
    one, again = (load_task(TaskSource(name="mine", **source, test_split="half")) for _ in range(2))
    assert one.test is not None
    kept, held = one.validation["text"][:], one.test["text"][:]
    assert (len(kept), len(held)) == (11, 11)
    assert sorted(kept + held) == sorted(whole.validation["text"][:])
    order = {text: place for place, text in enumerate(whole.validation["text"][:])}
    assert all(texts == sorted(texts, key=order.__getitem__) for texts in (kept, held))
    assert kept != whole.validation["text"][:11]
    assert one.fingerprint == again.fingerprint != whole.fingerprint
    assert list(one.scored) == ["validation", "test"]


def test_the_larger_half_of_an_odd_number_stays(tmp_path: Path, source: dict[str, Path]) -> None:
    source["validation"] = write(tmp_path / "odd.csv", ["a", "b"] * 10 + ["a"])
    data = load_task(TaskSource(name="mine", **source, test_split="half"))
    assert [len(part) for part in data.scored.values()] == [11, 10]


def test_the_embedded_tasks_have_one_already() -> None:
    with pytest.raises(DataError, match="grammar/acceptability: the data has a labelled test part of its own, .*leave"):
        load_task(TaskSource(name="grammar/acceptability", test_split="half"))


def test_a_half_of_one_label_is_refused(tmp_path: Path, source: dict[str, Path]) -> None:
    source["validation"] = write(tmp_path / "few.csv", ["a"] * 9 + ["b"])
    with pytest.raises(
        DataError, match="mine: the .* half of 10 validation examples has no two labels.*leave test_split"
    ):
        load_task(TaskSource(name="mine", **source, test_split="half"))


def test_a_test_file_is_read_and_checked(tmp_path: Path, source: dict[str, Path]) -> None:
    held = write(tmp_path / "held.csv", ["b", "a", "b"])
    data = load_task(TaskSource(name="mine", **source, test=held))
    assert data.test is not None
    assert data.test["label"][:] == [1, 0, 1]
    with pytest.raises(DataError, match="has a labelled test part of its own"):
        load_task(TaskSource(name="mine", **source, test=held, test_split="half"))
    write(held, ["b", "c"])
    with pytest.raises(
        DataError, match=r"mine: the test part has the label 'c', which no training example has \(a, b\)"
    ):
        load_task(TaskSource(name="mine", **source, test=held))


def split(seed: int | None, **source: Any) -> TaskData:
    return load_task(TaskSource(split_seed=seed, **source))


@pytest.mark.parametrize("embedded", [False, pytest.param(True, marks=pytest.mark.slow)])  # of thousands of sentences
def test_a_split_is_drawn_anew_by_its_seed(tmp_path: Path, embedded: bool) -> None:
    source: dict[str, Any] = {"name": "grammar/acceptability"}
    if not embedded:
        files = {part: write(tmp_path / f"{part}.csv", ["a", "b"] * 10) for part in ("train", "validation", "test")}
        source = {"name": "mine", **files}
    plain, one, again, other = (split(seed, **source) for seed in (None, 1, 1, 2))
    different = (plain, one, other)
    assert len({(len(data.train), len(data.validation)) for data in different}) == 1
    pools = [
        sorted([*data.train["text"], *data.validation["text"]])  # nothing comes, nothing goes
        for data in different
    ]
    assert pools[0] == pools[1] == pools[2]
    assert one.train.to_dict() == again.train.to_dict()
    assert len({tuple(data.validation["text"]) for data in different}) == 3
    assert {data.fingerprint for data in different} == {plain.fingerprint}  # the same data, parted otherwise
    assert one.test is not None
    assert plain.test is not None
    assert one.test.to_dict() == plain.test.to_dict()


def test_halves_and_fewer_examples_come_out_of_the_new_split(tmp_path: Path) -> None:
    files = {
        "train": write(tmp_path / "train.csv", ["a", "b"] * 20),
        "validation": write(tmp_path / "seen.csv", ["a", "b"] * 10),
    }
    data = split(4, name="mine", **files, test_split="half", max_train_samples=8)
    assert data.test is not None
    parts = [list(part["text"]) for part in (data.train, data.validation, data.test)]
    assert list(map(len, parts)) == [8, 10, 10]
    assert len({text for part in parts for text in part}) == 28
    assert all({text.split()[0] for text in part} == {"train", "seen"} for part in parts)


def test_a_split_without_some_label_is_refused(tmp_path: Path) -> None:
    files = {"train": write(tmp_path / "train.csv", ["a", "b"]), "validation": write(tmp_path / "seen.csv", ["a", "b"])}
    with pytest.raises(
        DataError, match="mine: in the split that seed [0-9]+ draws, a part lacks labels: of 4 examples"
    ):
        [split(seed, name="mine", **files) for seed in range(20)]  # two of three draws part them badly
