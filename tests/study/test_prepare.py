from __future__ import annotations

from pathlib import Path

import pytest
from tests.study._small import POSITIONS, MakePlan, rows, write_csv

from evenkeel.errors import DataError
from evenkeel.study import prepare


def test_texts_become_tokens(make_plan: MakePlan) -> None:
    plan = make_plan()
    prepared = prepare(plan.tasks[0], plan.models[0], 128)
    train = prepared.parts["train"]
    assert list(prepared.parts) == ["train", "validation"]
    assert prepared.tokenizer.decode(train["input_ids"][0]) == "[CLS] the film was bad [SEP]"
    assert train["length"][:] == [len(ids) for ids in train["input_ids"]]
    assert train["label"][:] == [int(label) for _, label in rows(32)]


@pytest.mark.parametrize(("asked", "longest"), [(4, 4), (1000, POSITIONS)])
def test_long_texts_are_cut_to_what_the_model_takes(
    make_plan: MakePlan, tmp_path: Path, asked: int, longest: int
) -> None:
    path = write_csv(tmp_path / "long.csv", [("good " * 50, "1"), ("bad", "0")])
    plan = make_plan(tasks=[{"name": "long", "train": path, "validation": path}])
    lengths = prepare(plan.tasks[0], plan.models[0], asked).parts["train"]["length"][:]
    assert lengths == [longest, 3]


def test_pairs_become_one_text_of_two_segments(make_plan: MakePlan, tmp_path: Path) -> None:
    header = ("premise", "hypothesis", "label")
    path = write_csv(tmp_path / "pairs.csv", [("the film", "good", "1"), ("the book", "bad", "0")], header=header)
    plan = make_plan(tasks=[{"name": "pairs", "train": path, "validation": path}])
    train = prepare(plan.tasks[0], plan.models[0], 128).parts["train"]
    assert train["token_type_ids"][0] == [0, 0, 0, 0, 1, 1]


def test_a_text_without_tokens_is_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "odd.csv", [("good", "1"), ("\u200b", "0"), ("bad", "0")])
    plan = make_plan(tasks=[{"name": "odd", "train": path, "validation": path}])
    with pytest.raises(
        DataError, match=r"odd, train: the text '\\u200b' of example 2 tokenises to nothing; correct it"
    ):
        prepare(plan.tasks[0], plan.models[0], 128)
