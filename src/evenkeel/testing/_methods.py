"""The suite that every fine-tuning method passes."""

from __future__ import annotations

import dataclasses
import pickle
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import FullFineTuning, Method
from evenkeel.testing._elsewhere import logits_elsewhere
from evenkeel.testing._stage import check, same
from evenkeel.testing._tiny import Rows, classifier, language_model

__all__ = ["MethodContract"]

_RATE, _BATCH, _STEPS = 1e-2, 4, 4
# The gradient of a key's bias is zero but for rounding, which Adam would make as large as any other.
_EPSILON = 1e-3


class MethodContract(ABC):
    """Tests that a fine-tuning method passes if it keeps to the contract of ``evenkeel.methods.Method``.

    Subclass it in a test file, under a name that your test runner collects, and say how the method is made. What is
    special about it is said by class attributes. Where a test cannot be asked of it, the test is skipped.

    ``test_core`` and the short tests after it take a tiny BERT; ``test_on_...`` ask everything of one architecture
    each, and take a second or two.

    Attributes:
        differs: whether it is another training than full fine-tuning.
        adds_up: whether accumulated micro-batches give the weights that one large batch gives; not where it draws for
            each micro-batch.
        refused: architectures that it refuses, and a regular expression that the refusal's text fits.
        regression: whether it can train a regression; if not, it refuses.
        causal: whether it can train causal language models, or the architectures of those that it can; the others, and
            architectures that it refuses altogether, it refuses.
        rounds: the number of epochs in which the loss has to fall.
        dropout: the dropout rate of the models that it trains where no other rate is told; above 0 if it needs some.

    Example:
        >>> from evenkeel.methods import ComponentClipping
        >>> class TestMine(MethodContract):
        ...     def make(self):
        ...         return ComponentClipping(max_norm=0.01)
        >>> TestMine().test_is_a_configuration()
    """

    differs: ClassVar[bool] = True
    adds_up: ClassVar[bool] = True
    refused: ClassVar[Mapping[str, str]] = {}
    regression: ClassVar[bool] = True
    causal: ClassVar[bool | Collection[str]] = True
    rounds: ClassVar[int] = 8
    dropout: ClassVar[float] = 0.0

    @abstractmethod
    def make(self) -> Method:
        """Return the method, always of the same configuration, strong enough to show within four steps."""

    def neutral(self) -> Method | None:
        """Return the method with a setting by which it does nothing; None if there is none."""
        return None

    def twin(self) -> Sequence[Method]:
        """Return what the neutral setting equals."""
        return (FullFineTuning(),)

    # --- the configuration

    def test_is_a_configuration(self) -> None:
        """A frozen, keyword-only dataclass that says what it is, is equal to its like, and can be pickled."""
        method = self.make()
        made: Any = type(method)
        check(dataclasses.is_dataclass(made), f"{made.__name__} is no dataclass")
        parameters: Any = made.__dataclass_params__
        check(parameters.frozen, f"{made.__name__} is not frozen; write @dataclass(frozen=True, kw_only=True)")
        keyword_only = all(field.kw_only for field in dataclasses.fields(made))
        check(keyword_only, f"{made.__name__} has fields that are not keyword-only")
        check(getattr(made, "__final__", False), f"{made.__name__} is not final; decorate it with typing.final")
        check(bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", method.name)), f"'{method.name}' is no name for a plan")
        for said in ("summary", "source"):
            text = getattr(method, said)
            check(bool(text) and "\n" not in text, f"{made.__name__}.{said} must be one line of text")
        check(method == self.make(), "two of the same configuration are not equal")
        check(pickle.loads(pickle.dumps(method)) == method, "it changes when it is pickled")  # noqa: S301  our own

    # --- the training, on a tiny BERT

    def test_core(self) -> None:
        """It lowers the loss, differs from full fine-tuning, and leaves nothing behind."""
        self._trains("bert")

    def test_neutral_setting_equals_its_twin(self) -> None:
        """Bit for bit, and draws nothing from torch's global generator."""
        self._is_neutral("bert")

    def test_same_seed_gives_the_same_weights(self) -> None:
        """Twice the same configuration and seed; another seed is another training."""
        self._repeats("bert")

    def test_resumed_training_equals_an_uninterrupted_one(self) -> None:
        """Bit for bit, from a checkpoint in the middle."""
        self._resumes("bert")

    def test_micro_batches_add_up(self) -> None:
        """Two accumulated micro-batches give the weights that one batch of both gives."""
        if not self.adds_up:
            raise SkipTest("it draws for each micro-batch")
        whole = _trained([self.make()], self._classifier("bert"), batch=2 * _BATCH)
        parts = _trained([self.make()], self._classifier("bert"), batch=_BATCH, gradient_accumulation_steps=2)
        torch.testing.assert_close(_weights(parts), _weights(whole), rtol=0.0, atol=2e-4)

    def test_trains_in_bf16(self) -> None:
        """Weights stay float32 and finite, and move."""
        model = classifier("bert", dropout=0.1)
        before = _weights(model)
        _trained([self.make()], model, bf16=True)
        after = _weights(model)
        check(after.dtype == torch.float32, f"weights became {after.dtype}")
        check(bool(torch.isfinite(after).all()), "weights are not finite")
        check(not torch.equal(before, after), "weights did not move")

    def test_leaves_nothing_behind_after_an_exception(self) -> None:
        """What ends a training by an exception leaves the model's modules as a training without the method does."""
        plain, model = classifier("bert", dropout=0.1), classifier("bert", dropout=0.1)
        for methods, some in (([FullFineTuning()], plain), ([self.make()], model)):
            with _raises(_StoppedError, "the callback's exception was lost"):
                _trained(methods, some, callbacks=[_StopsAt(2)])
        _same_modules(model, plain)

    def test_regression(self) -> None:
        """It trains a regression, or refuses it before training."""
        self._trains_or_refuses("regression", self.regression, lambda: self._classifier("bert", classes=1))

    def test_saved_model_needs_no_evenkeel(self) -> None:
        """What ``save_model`` writes loads by plain ``from_pretrained`` where evenkeel is not installed."""
        self._loads_elsewhere("bert")

    # --- all of it, on each architecture

    def test_on_bert(self) -> None:
        """Everything, on BERT."""
        self._everything("bert")

    def test_on_roberta(self) -> None:
        """Everything, on RoBERTa."""
        self._everything("roberta")

    def test_on_deberta(self) -> None:
        """Everything, on DeBERTa."""
        self._everything("deberta")

    def test_on_deberta_v2(self) -> None:
        """Everything, on DeBERTa-v2, which v3 is as well."""
        self._everything("deberta-v2")

    def test_on_modernbert(self) -> None:
        """Everything, on ModernBERT."""
        self._everything("modernbert")

    def test_on_electra(self) -> None:
        """Everything, on ELECTRA."""
        self._everything("electra")

    def test_on_albert(self) -> None:
        """Everything, on ALBERT, whose layers are one."""
        self._everything("albert")

    def test_on_gpt2(self) -> None:
        """Everything, on GPT-2, as a classifier and as a language model."""
        self._everything("gpt2")
        self._language_model("gpt2")

    def test_on_llama(self) -> None:
        """Everything, on Llama, as a classifier and as a language model."""
        self._everything("llama")
        self._language_model("llama")

    def _everything(self, architecture: str) -> None:
        if architecture in self.refused:
            with _raises(MethodError, f"{architecture} was not refused", self.refused[architecture]):
                _trainer([self.make()], self._classifier(architecture))
            return
        self._trains(architecture)
        self._repeats(architecture)
        self._resumes(architecture)
        self._loads_elsewhere(architecture)
        if self.neutral() is not None:
            self._is_neutral(architecture)

    def _language_model(self, architecture: str) -> None:
        can = self.causal if isinstance(self.causal, bool) else architecture in self.causal
        can = can and architecture not in self.refused
        self._trains_or_refuses("causal-lm", can, lambda: language_model(architecture, dropout=self.dropout))

    # --- what is asked

    def _classifier(self, architecture: str, *, classes: int = 2) -> PreTrainedModel:
        return classifier(architecture, classes=classes, dropout=self.dropout)

    def _trains(self, architecture: str) -> None:
        model, plain = self._classifier(architecture), _fully_trained(architecture, self.rounds, self.dropout)
        rows = Rows(4 * _BATCH)
        before = _loss(model, rows)
        _trained([self.make()], model, rows=rows, num_train_epochs=self.rounds, max_steps=-1)
        after = _loss(model, rows)
        check(after < before, f"on {architecture} the loss went from {before} to {after}")
        _same_modules(model, plain)
        if self.differs:
            check(not torch.equal(_weights(model), _weights(plain)), f"on {architecture} it is full fine-tuning")

    def _is_neutral(self, architecture: str) -> None:
        neutral = self.neutral()
        if neutral is None:
            raise SkipTest("it has no setting that does nothing")
        found, states = [], []
        for methods in ([neutral], list(self.twin())):
            model = _trained(methods, classifier(architecture))
            found.append(_weights(model))
            states.append(torch.get_rng_state())
        same(found[0], found[1], f"on {architecture} the neutral setting is another training than its twin's")
        same(states[0], states[1], f"on {architecture} the neutral setting drew from torch's global generator")

    def _repeats(self, architecture: str) -> None:
        runs = [
            _weights(_trained([self.make()], classifier(architecture, dropout=0.1), seed=seed)) for seed in (3, 3, 4)
        ]
        same(runs[0], runs[1], f"on {architecture} the same seed gave other weights")
        check(not torch.equal(runs[0], runs[2]), f"on {architecture} another seed gave the same weights")

    def _resumes(self, architecture: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            saving: dict[str, Any] = {"output_dir": folder, "save_strategy": "steps", "save_steps": _STEPS // 2}
            whole = _trained([self.make()], classifier(architecture, dropout=0.1), **saving)
            resumed = classifier(architecture, dropout=0.1)
            middle = str(Path(folder) / f"checkpoint-{_STEPS // 2}")
            _trainer([self.make()], resumed, **saving).train(resume_from_checkpoint=middle)
        same(_weights(resumed), _weights(whole), f"on {architecture} a resumed training went on otherwise")

    def _loads_elsewhere(self, architecture: str) -> None:
        model = self._classifier(architecture)
        trainer = _trainer([self.make()], model)
        trainer.train()
        batch = _batch(Rows(_BATCH))
        batch.pop("labels")
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            trainer.save_model(folder)
            given = {name: tensor.tolist() for name, tensor in batch.items()}
            found = logits_elsewhere(Path(folder), "AutoModelForSequenceClassification", given)
            own = model.train(False)(**batch).logits
        torch.testing.assert_close(torch.tensor(found), own, rtol=1e-5, atol=1e-5)

    def _trains_or_refuses(self, kind: str, can: bool, build: Callable[[], PreTrainedModel]) -> None:
        model, rows = build(), Rows(4 * _BATCH, kind=kind)
        if not can:
            with _raises(MethodError, f"{kind} was not refused"):
                _trainer([self.make()], model, rows=rows)
            return
        before = _loss(model, rows)
        _trained([self.make()], model, rows=rows, num_train_epochs=self.rounds, max_steps=-1)
        after = _loss(model, rows)
        check(after < before, f"in {kind} the loss went from {before} to {after}")


@cache
def _fully_trained(architecture: str, rounds: int, dropout: float) -> PreTrainedModel:
    """Return what full fine-tuning makes of an architecture; nobody changes it."""
    rows = Rows(4 * _BATCH)
    model = classifier(architecture, dropout=dropout)
    return _trained([FullFineTuning()], model, rows=rows, num_train_epochs=rounds, max_steps=-1)


class _StoppedError(Exception):
    """Ends a training."""


class _StopsAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            raise _StoppedError


def _trainer(
    methods: Sequence[Method],
    model: nn.Module,
    *,
    rows: Rows | None = None,
    batch: int = _BATCH,
    callbacks: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> MethodTrainer:
    settings: dict[str, Any] = {
        "learning_rate": _RATE,
        "adam_epsilon": _EPSILON,
        "max_steps": _STEPS,
        "per_device_train_batch_size": batch,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "output_dir": tempfile.gettempdir(),  # nothing is written there
    }
    trainer = MethodTrainer(
        model,
        TrainingArguments(**settings | changes),
        methods=methods,
        train_dataset=rows or Rows(8 * _BATCH),
        callbacks=list(callbacks),
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _trained(methods: Sequence[Method], model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    _trainer(methods, model, **options).train()
    return model


def _batch(rows: Rows) -> dict[str, Tensor]:
    items = [rows[place] for place in range(len(rows))]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def _loss(model: nn.Module, rows: Rows) -> float:
    model.eval()
    with torch.no_grad():
        return float(model(**_batch(rows)).loss)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def _modules(model: nn.Module) -> dict[str, Any]:
    """Return what a method could leave behind: modules, hooks, attributes, and what is trained."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        own = vars(module)
        hooks = {key: len(value) for key, value in own.items() if key.endswith("hooks") and value}
        plain = {key: value for key, value in own.items() if isinstance(value, bool | int | float | str)}
        plain.pop("training")
        found[name] = (type(module).__name__, sorted(own), hooks, plain)
    for name, parameter in model.named_parameters():
        found[name] = (type(parameter), parameter.requires_grad, tuple(parameter.shape), parameter.dtype)
    return found


def _same_modules(model: nn.Module, plain: nn.Module) -> None:
    found, wanted = _modules(model), _modules(plain)
    check(found.keys() == wanted.keys(), f"modules or parameters were added or lost: {found.keys() ^ wanted.keys()}")
    for name, own in found.items():
        check(
            own == wanted[name], f"'{name or 'the model'}' was left as {own}, and is {wanted[name]} without the method"
        )


@contextmanager
def _raises(kind: type[Exception], otherwise: str, pattern: str = "") -> Iterator[None]:
    try:
        yield
    except kind as error:
        check(bool(re.search(pattern, str(error))), f"the message '{error}' does not fit '{pattern}'")
    else:
        raise AssertionError(otherwise)
