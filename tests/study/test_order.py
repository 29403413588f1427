from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.study._small import MakePlan
from transformers import TrainerCallback

from evenkeel.study import RunResult, StudyFolder, execute
from evenkeel.study._study import Study
from evenkeel.study.engines import Job


class Batches(TrainerCallback):
    """Notes the head as it was drawn, the batches of each epoch, and the state of the generator that dropout uses."""

    def __init__(self) -> None:
        self.head: torch.Tensor | None = None
        self.epochs: list[list[int]] = []
        self.dropout: list[torch.Tensor] = []

    def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.head = model.classifier.weight.detach().clone()

    def on_epoch_begin(self, *args: Any, train_dataloader: Any, **kwargs: Any) -> None:
        self.dropout.append(torch.get_rng_state())
        self.epochs.append([index for batch in train_dataloader.batch_sampler for index in batch])
        torch.set_rng_state(self.dropout[-1])


def observed(make_plan: MakePlan, tmp_path: Any, grouped: bool, **seeds: Any) -> Batches:
    plan = make_plan(methods=["full"], training={"group_by_length": grouped, "epochs": 2.0}, seeds=[1])
    (job,) = Study(plan, StudyFolder(tmp_path)).jobs()
    watch = Batches()
    execute(job.spec.model_copy(update=seeds), job.task, model=job.model, callbacks=[watch])
    return watch


@pytest.mark.parametrize("grouped", [True, False])
def test_each_seed_changes_what_it_names_alone(make_plan: MakePlan, tmp_path: Any, grouped: bool) -> None:
    base = observed(make_plan, tmp_path, grouped, order_seed=5)
    init = observed(make_plan, tmp_path, grouped, order_seed=5, init_seed=7)
    order = observed(make_plan, tmp_path, grouped, order_seed=6)
    assert base.head is not None
    assert init.epochs == base.epochs  # another head, the same order and dropout
    assert not torch.equal(init.head, base.head)
    assert all(map(torch.equal, init.dropout, base.dropout))
    assert order.epochs != base.epochs  # another order, the same head and dropout
    assert torch.equal(order.head, base.head)
    assert all(map(torch.equal, order.dropout, base.dropout))
    assert base.epochs[0] != base.epochs[1]
    assert sorted(base.epochs[0]) == list(range(32))


def test_a_plan_that_varies_seeds_apart_makes_such_runs(make_plan: MakePlan, tmp_path: Any) -> None:
    plan = make_plan(methods=["full"], vary=["init", "order"])
    jobs: list[Job] = Study(plan, StudyFolder(tmp_path)).jobs()
    assert [job.spec.draw for job in jobs] == [f"init {i}, order {o}" for i in (1, 2) for o in (1, 2)]
    results: list[RunResult] = [execute(job.spec, job.task, model=job.model) for job in jobs]
    losses = [result.tables["log"]["loss"].to_pylist() for result in results]
    assert len({tuple(loss) for loss in losses}) == 4
