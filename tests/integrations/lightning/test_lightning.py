"""ComponentClip in Lightning's Trainer, against loops of torch alone."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from torch import Tensor, nn
from torch.utils.data import DataLoader

from evenkeel import ClipStatistics, components, thresholds
from evenkeel.errors import GradientError, MissingExtraError, ThresholdError

pl = pytest.importorskip("lightning.pytorch", reason="the extra lightning is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # Lightning's advice about speed
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),  # of Lightning's own code
]

from lightning.pytorch.loggers import Logger  # noqa: E402  after the skip
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from evenkeel.integrations.lightning import ComponentClip  # noqa: E402

MAX_NORM, RATE = 0.02, 0.1


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"])


class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.model = _models.bert()
        self.seen: list[float] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return loss_of(self.model, batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:  # comes after all callbacks
        self.seen.append(self.model.classifier.bias.grad.norm().item())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Kept(Logger):  # type: ignore[misc]
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "kept"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.told.append((step, metrics))


def trainer_of(tmp_path: Path, *callbacks: Any, **options: Any) -> Any:
    usual: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(tmp_path),
    }
    return pl.Trainer(callbacks=list(callbacks), **usual | options)


def loader(batch: int = 4) -> DataLoader[Any]:
    return DataLoader(DATA, batch_size=batch)


def by_hand(max_norm: float = MAX_NORM) -> tuple[nn.Module, list[dict[str, float]]]:
    model = _models.bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    norms = []
    for rows in loader():
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        named = [(name, one) for name, one in model.named_parameters() if one.grad is not None]
        norms.append({name: nn.utils.clip_grad_norm_([one], max_norm).item() for name, one in named})
        optimizer.step()
    return model, norms


def test_it_is_a_loop_that_clips_every_parameter_on_its_own(tmp_path: Path) -> None:
    module, clip = Module(), ComponentClip(MAX_NORM)
    trainer_of(tmp_path, clip).fit(module, loader())
    theirs, norms = by_hand()
    assert_same_weights(module.model, theirs)
    last = {name.removeprefix("model."): norm for name, norm in clip.last[0].to_dict().items()}
    assert last == pytest.approx(norms[-1], rel=1e-3, abs=1e-6)
    assert {part.role for part in components(module)} == {part.role for part in components(theirs)}


def test_accumulated_gradients_are_clipped_once_and_whole(tmp_path: Path) -> None:
    module, statistics = Module(), ClipStatistics()
    trainer = trainer_of(tmp_path, ComponentClip(MAX_NORM, statistics=statistics), accumulate_grad_batches=2)
    trainer.fit(module, loader(batch=2))
    assert set(statistics.steps.values()) == {5}
    assert_same_weights(module.model, by_hand()[0])


def half(scale: float) -> Any:
    """The plugin of precision='16-mixed' with a scaler that is active on the CPU; Lightning's own choice is not."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    plugin = MixedPrecision(precision="16-mixed", device="cpu", scaler=scaler)
    assert plugin.scaler is scaler
    assert scaler.is_enabled()
    return plugin


class Exact(Module):
    """Computes in float32 under autocast, so that the oracle is exact, and looks at the scaled gradient."""

    raw: list[float]

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return loss_of(self.model, batch)

    def on_after_backward(self) -> None:
        self.raw = [*getattr(self, "raw", []), self.model.classifier.bias.grad.norm().item()]


def test_a_loss_scale_is_divided_out_before(tmp_path: Path) -> None:
    module = Exact()
    trainer = trainer_of(tmp_path, ComponentClip(MAX_NORM), plugins=[half(2.0**10)])
    trainer.fit(module, loader())
    theirs, norms = by_hand()
    assert module.raw == pytest.approx([2.0**10 * each["classifier.bias"] for each in norms], rel=1e-3)
    assert_same_weights(module.model, theirs)
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**10


def test_a_fused_optimizer_does_not_see_the_scale_twice(tmp_path: Path) -> None:
    class Fused(Exact):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=RATE, fused=True)

    module = Fused()
    trainer = trainer_of(tmp_path, ComponentClip(MAX_NORM), plugins=[half(2.0**10)])
    trainer.fit(module, loader())
    assert trainer.optimizers[0]._step_supports_amp_scaling  # it would divide by itself, after clipping
    assert_same_weights(module.model, by_hand()[0])


def test_a_step_that_the_scaler_skips_stays_one(tmp_path: Path) -> None:
    class Poisoned(Exact):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 2:
                self.model.classifier.bias.grad[0] = math.inf

        def on_train_batch_end(self, *_: Any) -> None:
            self.kept = [*getattr(self, "kept", []), self.model.classifier.weight.detach().clone()]

    module = Poisoned()
    trainer = trainer_of(tmp_path, ComponentClip(MAX_NORM), plugins=[half(2.0**10)])
    trainer.fit(module, loader())
    same = [torch.equal(one, other) for one, other in zip(module.kept, module.kept[1:], strict=False)]
    assert same == [False, True, False, False]
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**9
    assert all(one.isfinite().all() for one in module.parameters())


def test_manual_optimization_is_clipped_before_every_step(tmp_path: Path) -> None:
    class Manual(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: dict[str, Tensor], index: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.model, batch))
            optimizer.step()

    module = Manual()
    trainer_of(tmp_path, ComponentClip(MAX_NORM)).fit(module, loader())
    assert_same_weights(module.model, by_hand()[0])


def test_several_optimizers_are_clipped_each_before_its_own_step(tmp_path: Path) -> None:
    class Two(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.other = _models.bert(seed=1)

        def training_step(self, batch: dict[str, Tensor], index: int) -> None:  # type: ignore[override]
            for model, optimizer in zip((self.model, self.other), self.optimizers(), strict=True):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(loss_of(model, batch))
                optimizer.step()
                self.untoggle_optimizer(optimizer)

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(model.parameters(), lr=RATE) for model in (self.model, self.other)]

    module, logger = Two(), Kept()
    clip = ComponentClip(thresholds.Ema(0.9, warmup=2, warmup_max_norm=0.5))
    trainer = trainer_of(tmp_path, clip, logger=logger, log_every_n_steps=5)
    trainer.fit(module, loader())
    assert [{name.split(".")[0] for name in clip.last[index].names} for index in (0, 1)] == [{"model"}, {"other"}]
    learnt = clip.state_dict()["thresholds"]
    assert set(learnt) == {0, 1}
    names = {name for _, metrics in logger.told for name in metrics}
    assert {"optimizer0/grad_norm/query", "optimizer1/clip_rate"} <= names


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_skipped_backward_is_no_matter(tmp_path: Path) -> None:
    class Skipping(Module):
        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor | None:  # type: ignore[override]
            return None if index == 1 else loss_of(self.model, batch)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            pass

    statistics = ClipStatistics()
    trainer_of(tmp_path, ComponentClip(MAX_NORM, statistics=statistics)).fit(Skipping(), loader())
    assert set(statistics.steps.values()) == {4}


def test_loggers_are_told_norms_and_rates_by_role(tmp_path: Path) -> None:
    logger = Kept()
    trainer_of(tmp_path, ComponentClip(MAX_NORM), logger=logger, log_every_n_steps=1).fit(Module(), loader())
    _, norms = by_hand()
    told = [metrics for _, metrics in logger.told if "clip_rate" in metrics]
    assert [metrics["grad_norm"] for metrics in told] == pytest.approx(
        [math.hypot(*each.values()) for each in norms], rel=1e-3
    )
    assert {"grad_norm/query", "clip_rate/query", "grad_norm/head"} <= set(told[0])
    assert [step for step, metrics in logger.told if "clip_rate" in metrics] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("make", [lambda: thresholds.Ema(0.9, beta=0.7, warmup=2, warmup_max_norm=0.5)])
def test_a_resumed_training_is_an_uninterrupted_one(tmp_path: Path, make: Any) -> None:
    whole, resumed = Module(), Module()
    trainer_of(tmp_path, ComponentClip(make()), max_epochs=2).fit(whole, loader())
    first = trainer_of(tmp_path, ComponentClip(make()), max_epochs=1)
    first.fit(resumed, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    again, clip = Module(), ComponentClip(make())
    trainer_of(tmp_path, clip, max_epochs=2).fit(again, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert_same_weights(again.model, whole.model, tolerance=0)
    forgetful, number = Module(), ComponentClip(make())
    number.load_state_dict = lambda state_dict: None  # type: ignore[method-assign]
    trainer_of(tmp_path, number, max_epochs=2).fit(forgetful, loader(), ckpt_path=tmp_path / "half.ckpt")
    with pytest.raises(AssertionError, match="differs by"):
        assert_same_weights(forgetful.model, whole.model)


def test_frozen_layers_come_and_go(tmp_path: Path) -> None:
    class Thawing(Module):
        def on_train_batch_start(self, batch: Any, index: int) -> None:
            self.model.bert.embeddings.requires_grad_(index > 2)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen.append(len(clip.last[0].names))

    module, clip = Thawing(), ComponentClip({"embedding": 1e-3, "*": MAX_NORM})
    module.model.bert.embeddings.requires_grad_(True)
    trainer_of(tmp_path, clip).fit(module, loader())
    assert module.seen == [36, 36, 36, 41, 41]


# --- bad input


def test_global_clipping_beside_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradientError, match=r"also clips \(gradient_clip_val=1.0\).*leave gradient_clip_val out"):
        trainer_of(tmp_path, ComponentClip(), gradient_clip_val=1.0).fit(Module(), loader())


def test_global_clipping_acts_afterwards_where_it_is_wanted(tmp_path: Path) -> None:
    module = Module()
    clip = ComponentClip(math.inf, also_global=True)
    trainer_of(tmp_path, clip, gradient_clip_val=1e-4).fit(module, loader())
    assert clip.last[0].total_norm > 1e-2  # what it saw
    weights = torch.cat([one.detach().flatten() for one in module.model.parameters()])
    begun = torch.cat([one.detach().flatten() for one in _models.bert().parameters()])
    assert (weights - begun).norm() <= 5 * RATE * 1e-4 + 1e-5


def test_two_of_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises((GradientError, RuntimeError), match=r"several ComponentClip|more than one stateful callback"):
        trainer_of(tmp_path, ComponentClip(), ComponentClip()).fit(Module(), loader())


def test_bad_options_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ThresholdError):
        ComponentClip(0)
    with pytest.raises(GradientError, match="'propagate', 'zero' or 'error'"):
        ComponentClip(nonfinite="ignore")  # type: ignore[arg-type]
    with pytest.raises(ThresholdError, match=r"names 'layer\.7"):
        trainer_of(tmp_path, ComponentClip({"layer.7.*": 0.1, "*": 1.0})).fit(Module(), loader())


def test_an_optimizer_of_something_else_is_told_of(tmp_path: Path) -> None:
    class Elsewhere(Module):
        def on_after_backward(self) -> None:
            other.weight.grad = torch.ones(1, 1)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(other.parameters(), lr=RATE)

    other = nn.Linear(1, 1)

    with pytest.raises(GradientError, match="holds no parameter of the model"):
        trainer_of(tmp_path, ComponentClip()).fit(Elsewhere(), loader())


def test_deepspeed_strategies_are_refused() -> None:
    class DeepSpeedStrategy:
        """Has the name of the real one, which needs DeepSpeed and a GPU."""

    trainer: Any = SimpleNamespace(gradient_clip_val=None, callbacks=[], strategy=DeepSpeedStrategy())
    with pytest.raises(GradientError, match="keeps gradients inside of the engine"):
        ComponentClip().on_fit_start(trainer, Module())


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "evenkeel.integrations.lightning")
    with pytest.raises(MissingExtraError, match=r"pip install 'evenkeel\[lightning\]'"):
        importlib.import_module("evenkeel.integrations.lightning")
