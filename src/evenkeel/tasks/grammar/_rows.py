"""The tables: labelled rows of the three tasks, and unlabelled text of the same kind for pretraining."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

from evenkeel.errors import DataError, unknown_name
from evenkeel.tasks.grammar._acceptability import RELATIVE, draw_acceptability
from evenkeel.tasks.grammar._draw import PARTS, Draw, part_of
from evenkeel.tasks.grammar._pairs import draw_entailment, draw_paraphrase
from evenkeel.tasks.grammar._sentence import draw_sentence

TASKS: tuple[str, ...] = ("acceptability", "entailment", "paraphrase")
"""The tasks that are made of the grammar."""

_DRAW: dict[str, Callable[[Draw, int], tuple[str, ...]]] = {
    "acceptability": draw_acceptability,
    "entailment": draw_entailment,
    "paraphrase": draw_paraphrase,
}
_SIZES = {"train": 1000, "validation": 500, "test": 500}
_BLOCK = 50  # labels are balanced in every block of so many rows
_ONES = {"acceptability": 29, "entailment": 24, "paraphrase": 29}  # rows of a block that are labelled 1
_TOGETHER = {"entailment": 0, "paraphrase": 1}  # the label of pairs that go together
_COHERENT = 1.0  # share of such pairs in pretraining
_MOST = 100_000  # rows; far below what the grammar can say, so that no part runs dry


def rows(
    task: str, part: Literal["train", "validation", "test"], *, n: int | None = None, seed: int = 0
) -> dict[str, list[Any]]:
    """Return a labelled table of one part of a task.

    The same arguments give the same rows everywhere, and fewer rows are the beginning of more. No row occurs twice
    (as a whole), and no text of one part, whatever its size and seed, occurs in another. In every 50 rows the labels
    are balanced alike: acceptability 29 : 21 (the majority is 1, acceptable), entailment 26 : 24 (the majority is 0,
    entailment), paraphrase 29 : 21 (the majority is 1, paraphrase).

    Args:
        task: ``"acceptability"`` (1 = acceptable), ``"entailment"`` (0 = the second sentence follows from the first,
            1 = it does not) or ``"paraphrase"`` (1 = both say the same).
        part: ``"train"``, ``"validation"`` or ``"test"``.
        n: number of rows; 1000 for train, 500 for validation and test if None.
        seed: which rows, of all that the grammar can make.

    Returns:
        Columns ``sentence`` (or ``sentence1`` and ``sentence2``) and ``label``, lists of ``n`` each.

    Raises:
        DataError: if the task or the part is unknown, ``n`` is not between 1 and 100,000, or the seed is no integer.

    Example:
        >>> table = rows("acceptability", "train", n=2)
        >>> sorted(table), len(table["sentence"])
        (['label', 'sentence'], 2)
    """
    if task not in TASKS:
        raise DataError(unknown_name("embedded task", task, TASKS))
    if part not in PARTS:
        raise DataError(unknown_name("part", part, PARTS))
    n = _SIZES[part] if n is None else n
    _check(n, seed)
    labels = list(islice(_labels(Draw("labels", task, part, seed), _ONES[task]), n))
    draw = Draw("rows", task, part, seed)  # apart from the labels' draws: what is drawn does not depend on n
    seen: set[tuple[str, ...]] = set()
    texts = [_fresh(draw, task, part, label, seen) for label in labels]
    names = ("sentence",) if task == "acceptability" else ("sentence1", "sentence2")
    return {
        **{name: list(column) for name, column in zip(names, zip(*texts, strict=True), strict=True)},
        "label": labels,
    }


def sentences(n: int, *, seed: int) -> list[str]:
    """Return sentences for pretraining; none of them can occur in a validation or test part.

    Args:
        n: number of sentences, with repetitions as they fall.
        seed: which ones.

    Returns:
        ``n`` sentences, lower case, words separated by spaces, with a final full stop.

    Raises:
        DataError: if ``n`` is not between 1 and 100,000, or the seed is no integer.

    Example:
        >>> sentences(1, seed=0) == sentences(2, seed=0)[:1]
        True
    """
    _check(n, seed)
    draw = Draw("sentences", seed)
    return list(islice((text for text in _any_sentences(draw) if part_of(text) == "train"), n))


def pairs(n: int, *, seed: int) -> list[tuple[str, str]]:
    """Return pairs of sentences for pretraining: as in entailment and paraphrase in turn, without labels.

    As neighbours in real text do, they go together: here all do, in the tasks about half. So what a masked word was can
    be read off the other sentence.

    Args:
        n: number of pairs.
        seed: which ones.

    Returns:
        ``n`` pairs; no sentence of them can occur in a validation or test part.

    Raises:
        DataError: if ``n`` is not between 1 and 100,000, or the seed is no integer.

    Example:
        >>> len(pairs(3, seed=0))
        3
    """
    _check(n, seed)
    draw = Draw("pairs", seed)
    found = []
    for index in range(n):
        task = ("entailment", "paraphrase")[index % 2]
        together = _TOGETHER[task]
        first, second = _of_part(draw, task, "train", together if draw.chance(_COHERENT) else 1 - together)
        found.append((first, second))
    return found


def _check(n: int, seed: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= _MOST:
        raise DataError(
            f"n must be a whole number from 1 to {_MOST}, but got {n!r}; ask for fewer rows, or use more seeds"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DataError(f"seed must be an integer, but got {seed!r}; any integer will do")


def _labels(draw: Draw, ones: int) -> Iterator[int]:
    while True:
        yield from draw.shuffled([1] * ones + [0] * (_BLOCK - ones))


def _any_sentences(draw: Draw) -> Iterator[str]:
    while True:
        yield draw_sentence(draw, definite=False, relative=RELATIVE).text


def _of_part(draw: Draw, task: str, part: str, label: int) -> tuple[str, ...]:
    """Draw until all texts of a row belong to the part; whether they do is blind to the label."""
    while True:
        texts = _DRAW[task](draw, label)
        if all(part_of(text) == part for text in texts):
            return texts


def _fresh(draw: Draw, task: str, part: str, label: int, seen: set[tuple[str, ...]]) -> tuple[str, ...]:
    while True:
        texts = _of_part(draw, task, part, label)
        if texts not in seen:
            seen.add(texts)
            return texts
