"""The tables: repeatable, apart, balanced, in a closed vocabulary; labels checked by readers that share no code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tasks.grammar._parser import accepts
from tests.tasks.grammar._reader import read

from evenkeel.errors import DataError
from evenkeel.tasks.grammar import TASKS, VOCABULARY, WORD_CLASSES, pairs, rows, sentences

pytestmark = pytest.mark.slow  # thousands of sentences are drawn and read again

PARTS = ("train", "validation", "test")
PAIR_TASKS = ("entailment", "paraphrase")


def texts(table: dict[str, list[Any]]) -> list[tuple[str, ...]]:
    return list(zip(*(column for name, column in table.items() if name != "label"), strict=True))


def flat(table: dict[str, list[Any]]) -> set[str]:
    return {text for row in texts(table) for text in row}


@pytest.mark.parametrize("task", TASKS)
def test_columns_and_usual_sizes(task: str) -> None:
    tables = {part: rows(task, part) for part in PARTS}  # type: ignore[arg-type]
    names = ["sentence"] if task == "acceptability" else ["sentence1", "sentence2"]
    assert all(list(table) == [*names, "label"] for table in tables.values())
    assert {part: len(table["label"]) for part, table in tables.items()} == {
        "train": 1000,
        "validation": 500,
        "test": 500,
    }


@pytest.mark.parametrize(("task", "ones"), [("acceptability", 0.58), ("entailment", 0.48), ("paraphrase", 0.58)])
@pytest.mark.parametrize("part", PARTS)
def test_labels_are_balanced_as_documented(task: str, ones: float, part: Any) -> None:
    labels = rows(task, part)["label"]
    assert all(type(label) is int for label in labels)
    assert sum(labels) / len(labels) == ones


@pytest.mark.parametrize("task", TASKS)
def test_parts_share_no_text_whatever_the_seed(task: str) -> None:
    train, validation, test = (flat(rows(task, part, seed=seed)) for seed, part in zip((0, 1, 2), PARTS, strict=True))
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_pretraining_text_is_in_no_validation_or_test_part() -> None:
    pretraining = {*sentences(2000, seed=0), *(text for pair in pairs(2000, seed=0) for text in pair)}
    for task in TASKS:
        assert not pretraining & (flat(rows(task, "validation")) | flat(rows(task, "test")))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("part", PARTS)
def test_no_row_occurs_twice(task: str, part: Any) -> None:
    assert Counter(texts(rows(task, part))).most_common(1)[0][1] == 1


@pytest.mark.parametrize("task", TASKS)
def test_fewer_rows_are_the_beginning_of_more(task: str) -> None:
    few, many = rows(task, "test", n=7), rows(task, "test", n=120)
    assert few == {name: column[:7] for name, column in many.items()}


def test_seeds_differ() -> None:
    assert rows("acceptability", "train", n=50) != rows("acceptability", "train", n=50, seed=1)
    assert sentences(50, seed=0) != sentences(50, seed=1)


DIGEST = """
import hashlib, json
from evenkeel.tasks.grammar import TASKS, pairs, rows, sentences
made = [rows(task, part, n=60, seed=3) for task in TASKS for part in ("train", "validation", "test")]
made += [sentences(60, seed=3), pairs(60, seed=3)]
print(hashlib.sha256(json.dumps(made).encode()).hexdigest())
"""


@pytest.mark.parametrize("hash_seed", ["0", "17"])
def test_the_same_text_on_every_machine(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "794f44fa1a8687db6479756239c540c03051681a70551391b7e684889ae837dd"


def test_every_word_is_in_the_vocabulary_and_every_word_occurs() -> None:
    said = {word for text in sentences(3000, seed=0) for word in text.split()}
    assert said == set(VOCABULARY)
    assert list(VOCABULARY) == sorted(set(VOCABULARY))
    for task in TASKS:
        assert {word for text in flat(rows(task, "train")) for word in text.split()} <= set(VOCABULARY)


def test_sentences_are_sentences() -> None:
    assert [text for text in sentences(2000, seed=5) if not accepts(text)] == []


@pytest.mark.parametrize("part", PARTS)
def test_acceptability_labels_are_right(part: Any) -> None:
    table = rows("acceptability", part)
    assert [accepts(text) for text in table["sentence"]] == [label == 1 for label in table["label"]]


@given(seed=st.integers(-(10**9), 10**9))
def test_acceptability_labels_are_right_for_any_seed(seed: int) -> None:
    table = rows("acceptability", "train", n=25, seed=seed)
    assert [accepts(text) for text in table["sentence"]] == [label == 1 for label in table["label"]]


@given(seed=st.integers(-(10**9), 10**9))
def test_pair_labels_are_right_for_any_seed(seed: int) -> None:
    for first, second, label in zip(*rows("entailment", "train", n=25, seed=seed).values(), strict=True):
        assert (read(second) <= read(first)) == (label == 0), (first, second)
    for first, second, label in zip(*rows("paraphrase", "train", n=25, seed=seed).values(), strict=True):
        assert (read(second) == read(first)) == (label == 1), (first, second)
        assert first != second


def test_pretraining_pairs_go_together() -> None:
    found = pairs(400, seed=4)
    assert [pair for pair in found if not read(pair[1]) <= read(pair[0])] == []  # entailed, or the same
    assert [pair for pair in found[1::2] if read(pair[0]) != read(pair[1])] == []  # every other one is a paraphrase


def test_no_word_is_in_two_classes() -> None:
    words = [word for likes in WORD_CLASSES for word in likes]
    assert len(words) == len(set(words))
    assert set(VOCABULARY) - set(words) == {".", "by", "from", "who"}


@pytest.mark.parametrize("task", PAIR_TASKS)
def test_both_texts_of_a_pair_are_sentences(task: str) -> None:
    assert [text for text in flat(rows(task, "validation")) if not accepts(text)] == []


@pytest.mark.parametrize("task", PAIR_TASKS)
def test_new_words_alone_do_not_solve_a_pair(task: str) -> None:
    """A rule that only counts words of the second sentence that the first lacks is often wrong."""
    table = rows(task, "train")
    new = [len(set(second.split()) - set(first.split())) for first, second in texts(table)]
    for most in range(8):
        right = sum((count > most) == label for count, label in zip(new, table["label"], strict=True))
        assert 0.2 < right / len(new) < 0.8, most


@pytest.mark.parametrize("task", PAIR_TASKS)
def test_length_tells_little(task: str) -> None:
    table = rows(task, "train")
    lengths: dict[int, list[int]] = {0: [], 1: []}
    for row, label in zip(texts(table), table["label"], strict=True):
        lengths[label].append(len(row[1].split()))
    means = [sum(found) / len(found) for found in lengths.values()]
    assert abs(means[0] - means[1]) < 1.5  # words, of about 7 (hypotheses) or 11 (paraphrases)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "acceptabilty", "part": "train"}, "unknown embedded task .*did you mean 'acceptability'"),
        ({"task": "entailment", "part": "dev"}, "unknown part 'dev'"),
        ({"task": "entailment", "part": "test", "n": 0}, "n must be a whole number from 1 to 100000, but got 0"),
        ({"task": "entailment", "part": "test", "n": 2.0}, "but got 2.0"),
        ({"task": "entailment", "part": "test", "n": True}, "but got True"),
        ({"task": "entailment", "part": "test", "seed": None}, "seed must be an integer, but got None"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(**arguments)


@pytest.mark.parametrize("make", [sentences, pairs])
def test_bad_sizes_of_pretraining_text_are_refused(make: Any) -> None:
    with pytest.raises(DataError, match="n must be a whole number"):
        make(-1, seed=0)
    with pytest.raises(DataError, match="seed must be an integer"):
        make(1, seed="0")
