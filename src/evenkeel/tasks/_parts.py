"""Parts of parts: another split, fewer training examples, half of the validation part held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evenkeel.errors import DataError
from evenkeel.tasks._spec import Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["halves", "redrawn", "subset"]

_SEED = 0  # one choice for every run of every study: seeds of runs do not choose the data


def redrawn(task: Task, train: Dataset, validation: Dataset, *, seed: int, classes: int) -> dict[str, Dataset]:
    """Draw anew which examples are to train and which to validate on, as many of each as before.

    Args:
        task: the task.
        train: the training part.
        validation: the validation part.
        seed: of the draw.
        classes: how many classes there are; 0 where labels are none.

    Returns:
        ``train`` and ``validation``, in the order of the data.

    Raises:
        DataError: if a class is missing in the training part that was drawn, or labels are all alike in a part.

    Source: Bouthillier et al. 2021, arXiv 2103.03098: data splits are a source of variance like seeds.
    """
    from datasets import concatenate_datasets

    pool = concatenate_datasets([train, validation])
    order = np.random.default_rng(seed).permutation(len(pool))
    made = {
        part: pool.select(sorted(chosen.tolist()))
        for part, chosen in (("train", order[: len(train)]), ("validation", order[len(train) :]))
    }
    labels = {part: set(data["label"]) for part, data in made.items()}
    if len(labels["train"]) < (classes or 2) or len(labels["validation"]) < 2:
        raise DataError(
            f"{task.name}: in the split that seed {seed} draws, a part lacks labels: of {len(pool)} examples too few "
            "have the rarest one; do not vary the split, or give more data"
        )
    return made


def subset(task: Task, train: Dataset, size: int, *, classes: int) -> Dataset:
    """Draw training examples, once and for all runs.

    Args:
        task: the task.
        train: the training part.
        size: how many to keep.
        classes: how many classes there are; 0 for a regression.

    Returns:
        ``size`` examples in the order of the data; all, where there are no more.

    Raises:
        DataError: if ``size`` is not positive, or too small for every class (two values, for a regression) to be there.
    """
    if size < 1:
        raise DataError(
            f"max_train_samples must be positive, but got {size}; leave it out to keep all {len(train)} examples"
        )
    chosen = np.random.default_rng(_SEED).permutation(len(train))[:size]
    kept = train.select(sorted(chosen.tolist()))
    if len(set(kept["label"])) < (classes or 2):
        raise DataError(
            f"{task.name}: the {size} training examples drawn hold not every class; take more"
            if classes
            else f"{task.name}: the {size} training examples drawn have one label; take more"
        )
    return kept


def halves(task: Task, validation: Dataset) -> dict[str, Dataset]:
    """Split the validation part in halves, once and for all runs: choose on the one, report on the other.

    Args:
        task: the task.
        validation: the whole part; of an odd number the larger half stays validation.

    Returns:
        ``validation`` and ``test``, in the order of the data.

    Raises:
        DataError: if the labels of a half are all alike.

    Source: Zhang et al. 2021, arXiv 2006.05987: half of the development set as test set.
    """
    order = np.random.default_rng(_SEED).permutation(len(validation))
    middle = (len(validation) + 1) // 2
    made = {
        part: validation.select(sorted(chosen.tolist()))
        for part, chosen in (("validation", order[:middle]), ("test", order[middle:]))
    }
    for part, half in made.items():
        if len(set(half["label"])) < 2:
            raise DataError(
                f"{task.name}: the {part} half of {len(validation)} validation examples has no two labels, so that "
                "nothing can be told apart; leave test_split out, or give a test file of your own"
            )
    return made
