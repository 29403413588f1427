"""The lines of docs/integrations/migration.md: the old one and the new one do the same."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, assert_same_weights, mean_over_all
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import evenkeel as ek
from evenkeel.integrations.transformers import ComponentClip


def with_gradients(scale: float = 1.0) -> nn.Module:
    model = _models.bert()
    _models.backward(model)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale)
    return model


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def assert_same_gradients(one: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    for mine, theirs in zip(gradients(one), gradients(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=1e-9)


def test_torch_global() -> None:
    ours, theirs = with_gradients(10), with_gradients(10)
    nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    ek.clip_grad_norm_(ek.components(ours, by="global"), 1.0)
    assert_same_gradients(ours, theirs)


def test_torch_in_a_loop_over_parameters() -> None:
    ours, theirs = with_gradients(10), with_gradients(10)
    for parameter in theirs.parameters():
        nn.utils.clip_grad_norm_([parameter], 0.05)
    ek.clip_grad_norm_(ek.components(ours), 0.05)
    assert_same_gradients(ours, theirs)


def test_max_grad_norm_of_a_trainer(arguments: Callable[..., TrainingArguments]) -> None:
    def train(callbacks: list[Any], **options: Any) -> nn.Module:
        model = _models.bert()
        Trainer(
            model, arguments(**options), train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=callbacks
        ).train()
        return model

    assert_same_weights(train([ComponentClip(0.05, by="global")]), train([], max_grad_norm=0.05), tolerance=1e-5)


def test_the_published_scripts(arguments: Callable[..., TrainingArguments]) -> None:
    class Published(Trainer):
        """Clips each parameter on its own at the end of the micro-step, as theirs does."""

        def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(model, *args, **kwargs)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    nn.utils.clip_grad_norm_(parameter, 0.05)
            return loss

    ours, theirs = _models.bert(), _models.bert()
    usual: dict[str, Any] = {"train_dataset": DATA, "compute_loss_func": mean_over_all}
    Trainer(ours, arguments(), callbacks=[ComponentClip(0.05)], **usual).train()
    Published(theirs, arguments(), **usual).train()
    assert_same_weights(ours, theirs, tolerance=1e-5)


def test_gradient_clip_val_of_lightning(tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning", reason="the extra lightning is not installed")
    from evenkeel.integrations.lightning import ComponentClip as ForLightning

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = _models.bert()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(input_ids=batch["input_ids"]).logits, batch["labels"])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def train(**options: Any) -> nn.Module:
        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(tmp_path),
            **options,
        )
        trainer.fit(module, torch.utils.data.DataLoader(DATA, batch_size=4))
        return module.model

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        ours, theirs = train(callbacks=[ForLightning(0.05, by="global")]), train(gradient_clip_val=0.05)
    assert_same_weights(ours, theirs, tolerance=1e-5)


def dispatch_clip_grad(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """timm's function, without importing all of timm, which needs torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None:
        pytest.skip("timm is not installed")
    for name, folder in (("timm", ""), ("timm.utils", "utils")):
        package = ModuleType(name)
        package.__path__ = [str(Path(str(found.origin)).parent / folder)]
        monkeypatch.setitem(sys.modules, name, package)
    clip: Callable[..., None] = importlib.import_module("timm.utils.clip_grad").dispatch_clip_grad
    return clip


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = dispatch_clip_grad(monkeypatch)
    ours, theirs = with_gradients(10), with_gradients(10)
    clip(theirs.parameters(), 1.0, mode="norm")
    ek.clip_grad_norm_(ek.components(ours, by="global"), 1.0)
    assert_same_gradients(ours, theirs)
    ours, theirs = with_gradients(10), with_gradients(10)
    clip(theirs.parameters(), 0.01, mode="agc")
    ek.clip_grad_norm_(ek.components(ours), ek.thresholds.WeightRelative(0.01, per="row"))
    assert_same_gradients(ours, theirs, tolerance=1e-3)


@pytest.mark.parametrize(("keras_option", "by"), [("clipnorm", "tensor"), ("global_clipnorm", "global")])
def test_keras(keras_option: str, by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras was imported with another backend")
    torch.manual_seed(0)
    start = [torch.randn(3, 4), torch.randn(4)]
    steps = [torch.randn(3, 4) * 5, torch.randn(4) * 0.01]
    variables = [keras.Variable(one.numpy()) for one in start]
    optimizer = keras.optimizers.SGD(learning_rate=1.0, **{keras_option: 0.5})
    optimizer.apply([one.clone() for one in steps], variables)
    model = nn.ParameterDict({"a": nn.Parameter(start[0].clone()), "b": nn.Parameter(start[1].clone())})
    for parameter, step in zip(model.values(), steps, strict=True):
        parameter.grad = step.clone()
    ek.clip_grad_norm_(ek.components(model, by=by), 0.5)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    for variable, parameter in zip(variables, model.values(), strict=True):
        torch.testing.assert_close(
            torch.as_tensor(variable.value).detach().cpu(), parameter.detach(), rtol=1e-5, atol=1e-6
        )
