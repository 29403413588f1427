from __future__ import annotations

import pyarrow as pa

from evenkeel.report._agreement import agreement


def said(predictions, part: str = "validation") -> pa.Table:
    n = len(predictions)
    order = list(reversed(range(n)))  # rows come in any order
    return pa.table(
        {"part": [part] * n, "example": pa.array(order, pa.int32()), "prediction": [predictions[i] for i in order]}
    )


def test_runs_are_compared_example_by_example(make_cell) -> None:
    tables = [said([0, 1, 1, 0]), said([0, 1, 0, 0]), said([1, 1, 1, 1])]
    found = agreement(*make_cell([0.7, 0.7, 0.5], predictions=tables))
    assert found is not None
    assert (found.every, found.successful) == ("50 %", "25 %")


def test_one_run_agrees_with_nobody(make_cell) -> None:
    assert agreement(*make_cell([0.7, "queued"], predictions=[said([0, 1]), None])) is None
    found = agreement(*make_cell([0.7, 0.5], predictions=[said([0, 1]), said([0, 0])]))
    assert found is not None
    assert (found.every, found.successful) == ("50 %", "-")


def test_other_examples_and_numbers_are_not_compared(make_cell) -> None:
    assert agreement(*make_cell([0.7, 0.7], predictions=[said([0, 1]), said([0, 1, 1])])) is None
    assert agreement(*make_cell([0.7, 0.7], predictions=[said([0.5, 1.0]), said([0.1, 1.0])])) is None
