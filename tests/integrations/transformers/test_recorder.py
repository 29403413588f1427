"""The Recorder in trainings, against loops over tensors in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from tests import _models
from tests._tiers import few
from tests.integrations._training import (
    DATA,
    EPSILON,
    RATE,
    After,
    Before,
    assert_same_weights,
    by_hand,
    mean_over_all,
)
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from evenkeel import components
from evenkeel.errors import MeasureError
from evenkeel.integrations.transformers import ComponentClip, MethodTrainer, Recorder
from evenkeel.optim import ClippedAdamW, step_in_backward

Arguments = Callable[..., TrainingArguments]
Rows = list[dict[str, Any]]
MAX_NORM = 0.02
WAYS: dict[str, dict[str, Any]] = {
    "callback": {},
    "clipped adamw": {"optimizer": "clipped-adamw"},
    "in backward": {"in_backward": True},
}


def rows_of(recorder: Recorder) -> Rows:
    return recorder.telemetry.table().to_pylist()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Every component's entries in float64; of parameters that are frozen too."""
    return {
        part.path: torch.cat([piece.of(piece.tensor().detach())[0].double().flatten() for piece in part.pieces])
        for part in components(model)
    }


class Watch(After):
    """Keeps a copy of all weights before training and after each step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(lambda model, *_: self.seen.append(self._copy(model)))
        self.seen = [self._copy(model)]

    @staticmethod
    def _copy(model: nn.Module) -> dict[str, Tensor]:
        trained = [parameter.requires_grad for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        found = weights(model)
        for parameter, own in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(own)
        return found


def assert_drift(rows: Rows, seen: list[dict[str, Tensor]], starts: dict[int, int]) -> None:
    """Compare every row with the weights themselves; a phase starts after so many steps."""
    for row in rows:
        path, step = row["component"], row["step"]
        before, after = seen[step - 1][path], seen[step][path]
        assert row["weight_norm"] == pytest.approx(float(before.norm()), rel=1e-5)
        assert row["update_norm"] == pytest.approx(float((after - before).norm()), rel=1e-4, abs=1e-9)
        for prefix, then in (("", seen[0][path]), ("phase_", seen[starts[row["phase"]]][path])):
            rms = float((after - then).square().mean().sqrt())
            assert row[f"{prefix}rms_change"] == pytest.approx(rms, rel=1e-4, abs=1e-9)
            norms = float(after.norm() * then.norm())
            if norms:
                angle = 1 - float(after @ then) / norms
                assert row[f"{prefix}cosine_distance"] == pytest.approx(angle, rel=1e-3, abs=1e-8)


# --- in anybody's Trainer


def test_it_records_what_a_loop_sees(arguments: Arguments) -> None:
    ours, theirs = _models.bert(), _models.bert()
    recorder, watch = Recorder(every=3), Watch(ours)
    clip = ComponentClip(max_norm=MAX_NORM)
    Trainer(
        ours, arguments(), train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=[recorder, clip, watch]
    ).train()
    norms = by_hand(theirs, max_norm=MAX_NORM)
    rows, parts = rows_of(recorder), components(ours)
    steps = (1, 4, 5)  # each third, and the last
    assert [(row["step"], row["component"]) for row in rows] == [(s, part.path) for s in steps for part in parts]
    expected = [norm for step in steps for norm in norms[step - 1].values()]
    assert [row["norm"] for row in rows] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    factors = [min(1.0, MAX_NORM / (norm + 1e-6)) for norm in expected]
    assert [row["coefficient"] for row in rows] == pytest.approx(factors, rel=1e-3)
    assert min(factors) < 0.5
    assert_drift(rows, watch.seen, {0: 0})


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"gradient_accumulation_steps": 2}, {"activation_checkpointing": True}]
)
def test_it_does_in_every_way_of_training(options: dict[str, Any], arguments: Arguments) -> None:
    model = _models.bert()
    recorder, watch = Recorder(every=1), Watch(model)
    Trainer(model, arguments(**options), train_dataset=DATA, callbacks=[recorder, watch]).train()
    rows = rows_of(recorder)
    assert {row["step"] for row in rows} == set(range(1, len(watch.seen)))
    assert_drift(rows, watch.seen, {0: 0})


def test_recording_changes_nothing(arguments: Arguments) -> None:
    ours, theirs = _models.bert(), _models.bert()
    Trainer(ours, arguments(), train_dataset=DATA, callbacks=[Recorder(every=1)]).train()
    Trainer(theirs, arguments(), train_dataset=DATA).train()
    assert_same_weights(ours, theirs, tolerance=0)


def test_its_place_among_the_callbacks_does_not_count(arguments: Arguments) -> None:
    tables = []
    for order in (1, -1):
        recorder = Recorder(every=1)
        callbacks = [recorder, ComponentClip(max_norm=MAX_NORM)][::order]
        Trainer(_models.bert(), arguments(), train_dataset=DATA, callbacks=callbacks).train()
        tables.append(recorder.telemetry.table())
    assert tables[0].equals(tables[1])
    assert max(tables[0]["norm"].to_pylist()) > 2 * MAX_NORM


def test_coarse_clipping_is_told_of_its_members(arguments: Arguments) -> None:
    recorder, clip = Recorder(every=1), ComponentClip(max_norm=MAX_NORM, by="layer")
    model = _models.bert()
    Trainer(model, arguments(max_steps=1), train_dataset=DATA, callbacks=[recorder, clip]).train()
    assert clip.last is not None
    by_layer = dict(zip(clip.last.names, clip.last.coefficients.tolist(), strict=True))
    for row in rows_of(recorder):
        name = "outside" if row["layer"] is None else f"layer.{row['layer']}"
        assert row["coefficient"] == by_layer[name]


def test_nobody_tells_coefficients_of_a_plain_training(arguments: Arguments) -> None:
    recorder = Recorder(every=1)
    Trainer(_models.bert(), arguments(max_steps=1), train_dataset=DATA, callbacks=[recorder]).train()
    assert {row["coefficient"] for row in rows_of(recorder)} == {None}


OPTIONS: dict[str, Any] = {"lr": RATE, "eps": EPSILON, "weight_decay": 0.0}


def adamw(parameters: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, **OPTIONS)


@pytest.mark.parametrize("in_backward", [False, True])
def test_optimizers_that_clip_tell_coefficients(in_backward: bool, arguments: Arguments) -> None:
    tables = []
    for own in (True, False):
        model = _models.bert()
        recorder, watch = Recorder(every=2), Watch(model)
        if not own:
            optimizer: Any = adamw(model.parameters())
        elif in_backward:
            optimizer = step_in_backward(model, adamw, MAX_NORM)
        else:
            optimizer = ClippedAdamW(model, max_norm=MAX_NORM, **OPTIONS)
        callbacks = [recorder, watch] if own else [recorder, ComponentClip(MAX_NORM), watch]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        Trainer(model, arguments(), train_dataset=DATA, callbacks=callbacks, optimizers=(optimizer, schedule)).train()
        assert_drift(rows_of(recorder), watch.seen, {0: 0})
        tables.append(rows_of(recorder))
    for mine, theirs in zip(*tables, strict=True):
        for column in ("norm", "coefficient", "update_norm"):
            assert mine[column] == pytest.approx(theirs[column], rel=2e-2, abs=1e-5), column


def test_a_step_that_a_scaler_skips_changes_nothing(arguments: Arguments) -> None:
    def poison(model: nn.Module, _: object, step: int) -> None:
        if step == 2:
            model.get_parameter("classifier.bias").grad[0] = math.inf  # type: ignore[index]

    recorder = Recorder(every=1)
    callbacks = [Before(poison), recorder, ComponentClip(max_norm=MAX_NORM)]
    trainer = Trainer(_models.bert(), arguments(), train_dataset=DATA, callbacks=callbacks)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000)
    trainer.train()
    for step, group in itertools.groupby(rows_of(recorder), key=lambda row: row["step"]):
        moved = [row["update_norm"] for row in group if row["role"] != "key" or row["kind"] != "bias"]
        assert (max(moved) == 0.0) if step == 3 else (min(moved) > 0)


def test_components_follow_what_is_frozen_and_released(arguments: Arguments) -> None:
    freeze = After(lambda model, _, step: model.bert.embeddings.requires_grad_(step not in (1, 2)))  # type: ignore[union-attr, operator]
    model = _models.bert()
    recorder, watch = Recorder(every=1), Watch(model)
    Trainer(model, arguments(), train_dataset=DATA, callbacks=[recorder, watch, freeze]).train()
    rows = rows_of(recorder)
    counts = [sum(row["step"] == step for row in rows) for step in range(1, 6)]
    assert counts == [41, 36, 36, 41, 41]
    assert_drift(rows, watch.seen, {0: 0})


def test_a_recorder_begins_anew_with_the_next_training(arguments: Arguments) -> None:
    recorder = Recorder(every=1)
    for layers in (2, 3):
        Trainer(_models.bert(layers), arguments(max_steps=1), train_dataset=DATA, callbacks=[recorder]).train()
        assert recorder.telemetry.table().num_rows == {2: 41, 3: 57}[layers]


def test_a_resumed_training_does_not_know_where_it_began(arguments: Arguments, tmp_path: Path) -> None:
    args = arguments(save_strategy="steps", save_steps=3, output_dir=str(tmp_path))
    Trainer(_models.bert(), args, train_dataset=DATA).train()
    recorder = Recorder(every=1)
    resumed = Trainer(_models.bert(seed=7), args, train_dataset=DATA, callbacks=[recorder])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    rows = rows_of(recorder)
    assert {row["step"] for row in rows} == {4, 5}
    assert {row["rms_change"] for row in rows} == {None}
    assert all(row["update_norm"] is not None for row in rows)


def test_it_writes_one_file(arguments: Arguments, tmp_path: Path) -> None:
    tables = []
    for path in (None, tmp_path / "run" / "telemetry.parquet"):
        recorder = Recorder(every=1, path=path)
        Trainer(_models.bert(), arguments(), train_dataset=DATA, callbacks=[recorder]).train()
        tables.append(recorder.telemetry.table())
    assert tables[0].equals(tables[1])
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["telemetry.parquet"]
    assert pyarrow.parquet.read_table(tmp_path / "run" / "telemetry.parquet").num_rows == tables[0].num_rows


# --- in a MethodTrainer


def trained(
    args: TrainingArguments,
    methods: list[str],
    recorder: Recorder,
    *,
    seed: int = 0,
    resume: str | None = None,
    **more: Any,
) -> tuple[nn.Module, Watch, MethodTrainer]:
    model = _models.bert(seed=seed)
    watch = Watch(model)
    trainer = MethodTrainer(model, args, methods=methods, train_dataset=DATA, callbacks=[recorder, watch], **more)
    trainer.train(resume_from_checkpoint=resume)
    return model, watch, trainer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "methods",
    [
        ["component-clip:max_norm=0.02"],
        ["full"],
        pytest.param(["component-clip:max_norm=0.02:by=layer"], marks=pytest.mark.slow),
    ],
)
def test_methods_tell_coefficients_wherever_they_clip(way: str, methods: list[str], arguments: Arguments) -> None:
    recorder, plain = Recorder(every=2), Recorder(every=2)
    _, watch, _ = trained(arguments(), methods, recorder, **WAYS[way])
    trained(arguments(), methods, plain)
    rows = rows_of(recorder)
    assert_drift(rows, watch.seen, {0: 0})
    coarse = way == "in backward" and methods != ["component-clip:max_norm=0.02"]
    for row, other in zip(rows, rows_of(plain), strict=True):
        assert row["coefficient"] == pytest.approx(other["coefficient"], rel=1e-3)
        if coarse:
            assert row["norm"] is None  # the gradients were used up, and clipped in other components
        else:
            assert row["norm"] == pytest.approx(other["norm"], rel=1e-2, abs=1e-5)
    assert min(row["coefficient"] for row in rows) < 1


@pytest.mark.parametrize("more", [{}, {"in_backward": True}], ids=["adamw", "in backward"])
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_a_method_that_limits_updates_tells_by_how_much(optim: str, more: dict[str, Any], arguments: Arguments) -> None:
    recorder = Recorder(every=2)
    args = arguments(optim=optim, weight_decay=0.0)
    _, watch, trainer = trained(args, ["component-update-clip:max_update=0.001"], recorder, **more)
    rows = rows_of(recorder)
    assert_drift(rows, watch.seen, {0: 0})
    assert min(row["update_coefficient"] for row in rows) < 0.9
    for row in rows:
        allowed = 0.001 * (row["weight_norm"] + 1e-3 * math.sqrt(row["size"]))
        assert row["update_norm"] <= allowed * 1.001
        if row["update_coefficient"] < 1:
            assert row["update_norm"] == pytest.approx(allowed, rel=1e-3)
    assert {row["coefficient"] for row in rows} == {1.0}
    assert trainer.last_clip is not None


def test_nobody_tells_how_updates_were_limited_where_they_were_not(arguments: Arguments) -> None:
    recorder = Recorder(every=2)
    trained(arguments(), ["component-clip"], recorder)
    assert {row["update_coefficient"] for row in rows_of(recorder)} == {None}


def test_phases_have_numbers_borders_and_beginnings_of_their_own(arguments: Arguments) -> None:
    recorder = Recorder(every=100)
    _, watch, trainer = trained(arguments(), ["gradual-unfreezing:epochs=1"], recorder)
    rows = rows_of(recorder)
    assert trainer.state.global_step == 10  # five for each of two layers
    borders = [(1, 0), (5, 0), (6, 1), (10, 1)]
    assert list(dict.fromkeys((row["step"], row["phase"]) for row in rows)) == borders
    assert_drift(rows, watch.seen, {0: 0, 1: 5})
    first = {row["component"] for row in rows if row["phase"] == 0}
    assert "layer.1.query.weight" in first
    assert "layer.0.query.weight" not in first
    last = [row for row in rows if row["step"] == 10]
    apart = [row for row in last if row["rms_change"] != row["phase_rms_change"]]
    assert {row["component"] for row in apart} == first  # the others were frozen until then


def test_a_callback_that_is_added_later_stands_before_clipping(arguments: Arguments) -> None:
    tables = []
    for later in (False, True):
        recorder = Recorder(every=1)
        trainer = MethodTrainer(
            _models.bert(), arguments(), methods=["component-clip:max_norm=0.02"], train_dataset=DATA,
            callbacks=[] if later else [recorder],
        )  # fmt: skip
        if later:
            trainer.add_callback(recorder)
        trainer.train()
        tables.append(recorder.telemetry.table())
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("stop", few([3, 5, 8], {8}))  # within the first phase, at its end, within the second
@pytest.mark.parametrize("methods", [["component-clip"], ["gradual-unfreezing:epochs=1"], ["reinit"], ["lora"]])
def test_a_resumed_training_records_what_an_uninterrupted_one_does(
    methods: list[str], stop: int, arguments: Arguments, tmp_path: Path
) -> None:
    epochs = 1 if methods == ["gradual-unfreezing:epochs=1"] else 2
    options: dict[str, Any] = {"num_train_epochs": epochs, "save_strategy": "steps", "save_steps": stop}
    whole, again = Recorder(every=4), Recorder(every=4)
    trained(arguments(**options, output_dir=str(tmp_path)), methods, whole)
    checkpoint = str(tmp_path / f"checkpoint-{stop}")
    trained(arguments(**options, output_dir=str(tmp_path / "other")), methods, again, resume=checkpoint)
    assert again.telemetry.table().equals(whole.telemetry.table())


def test_what_was_kept_must_be_readable(arguments: Arguments, tmp_path: Path) -> None:
    args = arguments(save_strategy="steps", save_steps=3, output_dir=str(tmp_path))
    trained(args, ["full"], Recorder(every=1))
    (tmp_path / "checkpoint-3" / "evenkeel_telemetry.parquet").write_bytes(b"PAR1")
    with pytest.raises(MeasureError, match="what a Recorder kept in '.*checkpoint-3' cannot be read"):
        trained(args, ["full"], Recorder(every=1), resume=str(tmp_path / "checkpoint-3"))


def test_a_checkpoint_without_a_recorder_leaves_drift_unknown(arguments: Arguments, tmp_path: Path) -> None:
    args = arguments(save_strategy="steps", save_steps=3, output_dir=str(tmp_path))
    MethodTrainer(_models.bert(), args, methods=["full"], train_dataset=DATA).train()
    recorder = Recorder(every=1)
    trained(args, ["full"], recorder, resume=str(tmp_path / "checkpoint-3"))
    assert {row["rms_change"] for row in rows_of(recorder)} == {None}
    assert {row["step"] for row in rows_of(recorder)} == {4, 5}


def test_a_resumed_file_lies_beside_the_first(arguments: Arguments, tmp_path: Path) -> None:
    args = arguments(save_strategy="steps", save_steps=3, output_dir=str(tmp_path / "out"))
    path = tmp_path / "telemetry.parquet"
    trained(args, ["full"], Recorder(every=1, path=path))
    trained(args, ["full"], Recorder(every=1, path=path), resume=str(tmp_path / "out" / "checkpoint-3"))
    steps = [set(pyarrow.parquet.read_table(tmp_path / name)["step"].to_pylist()) for name in
             ("telemetry.parquet", "telemetry-from-3.parquet")]  # fmt: skip
    assert steps == [{1, 2, 3, 4, 5}, {4, 5}]


def test_a_recorder_forgets_the_trainer_before(arguments: Arguments) -> None:
    recorder = Recorder(every=100)
    trained(arguments(), ["gradual-unfreezing:epochs=1"], recorder)
    Trainer(_models.bert(), arguments(), train_dataset=DATA, callbacks=[recorder]).train()
    rows = rows_of(recorder)
    assert list(dict.fromkeys((row["step"], row["phase"]) for row in rows)) == [(1, 0), (5, 0)]
    assert {row["coefficient"] for row in rows} == {None}
