"""What MethodTrainer does with sessions: when hooks are called, with what, and what ways of training are refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from tests import _models
from tests.integrations._training import BATCH, DATA, RATE, Before, assert_same_weights, mean_over_all, weights
from torch import Tensor, nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Batch, FullFineTuning, Method, Mix, Moment, Phase, Recipe, Session, Setting, Step
from evenkeel.partition import Components

Arguments = Callable[..., TrainingArguments]


class Told(Session):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.moments: list[Moment] = []
        self.steps: list[Step] = []

    def start(self) -> None:
        self.heard.append("start")

    def before_forward(self, moment: Moment) -> None:
        self.heard.append("forward")
        self.moments.append(moment)

    def loss_term(self, batch: Batch) -> Tensor | None:
        self.heard.append("loss")
        return None

    def before_step(self, step: Step) -> None:
        self.heard.append("before")
        self.steps.append(step)

    def after_step(self, step: Step) -> None:
        self.heard.append("after")

    def finish(self) -> None:
        self.heard.append("finish")

    def close(self) -> None:
        self.heard.append("close")

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.heard.append("evaluating")
        yield
        self.heard.append("evaluated")

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return self._evaluating()

    def state_dict(self) -> dict[str, Any]:
        return {"heard": list(self.heard)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.heard = [*state["heard"], "resumed"]


@final
@dataclass(frozen=True, kw_only=True)
class Listener(Method):
    name: ClassVar[str] = "listener"
    summary: ClassVar[str] = "writes down what it is told"
    source: ClassVar[str] = "this test"
    sessions: ClassVar[list[Any]] = []
    settings: ClassVar[list[Setting]] = []

    make: Callable[[], Session] = Told

    def begin(self, setting: Setting) -> Session:
        self.settings.append(setting)
        self.sessions.append(self.make())
        return self.sessions[-1]


@pytest.fixture(autouse=True)
def _no_sessions() -> None:
    Listener.sessions.clear()
    Listener.settings.clear()


def test_hooks_are_called_in_order(arguments: Arguments) -> None:
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "seed": 5}
    trainer = MethodTrainer(_models.bert(), arguments(**options), methods=[Listener()], train_dataset=DATA)
    trainer.train()
    (session,) = Listener.sessions
    micro = ["forward", "loss"]
    step = [*micro, *micro, "before", "after"]
    assert session.heard == ["start", *step, *step, "finish", "close"]
    assert [(moment.step, moment.micro, moment.seed) for moment in session.moments] == [
        (0, 0, 5),
        (0, 1, 5),
        (1, 0, 5),
        (1, 1, 5),
    ]
    assert [one.total for one in session.steps] == [2, 2]
    trainer.train()
    assert len(Listener.sessions) == 2


def test_an_exception_closes_and_does_not_finish(arguments: Arguments) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    trainer = MethodTrainer(
        _models.bert(), arguments(), methods=[Listener()], train_dataset=DATA, callbacks=[Before(stop)]
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert Listener.sessions[0].heard == ["start", "forward", "loss", "close"]


def test_evaluations_while_training_are_announced(arguments: Arguments) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    trainer = MethodTrainer(
        _models.bert(), arguments(**options), methods=[Listener()], train_dataset=DATA, eval_dataset=DATA
    )
    trainer.evaluate()
    assert Listener.sessions == []
    trainer.train()
    heard = Listener.sessions[0].heard
    assert heard[-4:] == ["evaluating", "evaluated", "finish", "close"]
    assert heard.count("loss") == 2  # evaluating adds nothing to a loss


def test_a_resumed_training_is_not_started_again(arguments: Arguments, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path)}
    MethodTrainer(_models.bert(), arguments(**options), methods=[Listener()], train_dataset=DATA).train()
    again = MethodTrainer(_models.bert(), arguments(**options), methods=[Listener()], train_dataset=DATA)
    again.train(resume_from_checkpoint=True)  # the last one
    first, second = Listener.sessions
    assert second.heard == [*first.heard[: first.heard.index("finish")], "resumed", "finish", "close"]
    other = MethodTrainer(_models.bert(), arguments(**options), methods=["component-clip"], train_dataset=DATA)
    with pytest.raises(MethodError, match=r"written with the methods listener, and this training has \(none\)"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_checkpoint_that_is_cut_short_is_refused(arguments: Arguments, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path)}
    MethodTrainer(_models.bert(), arguments(**options), methods=[Listener()], train_dataset=DATA).train()
    file = tmp_path / "checkpoint-3" / "evenkeel_methods.pt"
    file.write_bytes(file.read_bytes()[:100])
    again = MethodTrainer(_models.bert(), arguments(**options), methods=[Listener()], train_dataset=DATA)
    with pytest.raises(MethodError, match="listener cannot go on from .*resume from another checkpoint"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert Listener.sessions[-1].heard == ["close"]


def test_each_model_that_is_made_anew_is_begun(arguments: Arguments) -> None:
    trainer = MethodTrainer(
        None, arguments(), model_init=lambda: _models.bert(), methods=[Listener()], train_dataset=DATA
    )
    assert Listener.settings == []  # the model that only shows what there is
    trainer.train()
    assert [setting.model for setting in Listener.settings] == [trainer.model]


def test_a_session_that_cannot_begin_closes_those_before_it(arguments: Arguments) -> None:
    def cannot() -> Session:
        raise MethodError("no")

    other: Any = type("Other", (Method,), {"name": "other", "begin": lambda self, setting: cannot()})
    trainer = MethodTrainer(_models.bert(), arguments(), methods=[Listener(), other()], train_dataset=DATA)
    with pytest.raises(MethodError, match="no"):
        trainer.train()
    assert Listener.sessions[0].heard == ["close"]


class Term(Told):
    """Adds the mean of the squared logits, or their loss on another pass."""

    def loss_term(self, batch: Batch) -> Tensor | None:
        return batch.mean(batch.logits().square().sum(1))


class Again(Told):
    def loss_term(self, batch: Batch) -> Tensor | None:
        loss, outputs = batch.again()
        assert torch.equal(loss, batch.loss)
        assert torch.equal(batch.logits(outputs), batch.logits())
        assert set(batch.inputs) == {"input_ids", "labels"}
        return loss


def by_hand(steps: int, *, factor: float = 1.0, term: float = 0.0) -> nn.Module:
    model = _models.bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-3, weight_decay=0.0)
    for step in range(steps):
        ids = DATA.ids[step * BATCH : (step + 1) * BATCH]
        outputs = model(input_ids=ids, labels=ids[:, 0] % 2)
        loss = factor * outputs.loss + term * outputs.logits.square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@pytest.mark.parametrize(("session", "oracle"), [(Term, {"term": 1.0}), (Again, {"factor": 2.0})])
def test_terms_are_added_to_the_loss(session: type[Session], oracle: dict[str, float], arguments: Arguments) -> None:
    trainer = MethodTrainer(_models.bert(), arguments(), methods=[Listener(make=session)], train_dataset=DATA)
    trainer.train()
    assert_same_weights(trainer.model, by_hand(len(DATA) // BATCH, **oracle))


@pytest.mark.parametrize("own", [None, mean_over_all])
def test_terms_of_micro_batches_add_up(own: Any, arguments: Arguments) -> None:
    found = []
    for rows, accumulated in ((4, 1), (2, 2), (1, 4)):
        options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
        trainer = MethodTrainer(
            _models.bert(),
            arguments(**options),
            methods=[Listener(make=Term)],
            train_dataset=DATA,
            compute_loss_func=own,
        )
        trainer.train()
        found.append(weights(trainer.model))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-5)


def test_micro_batches_of_a_classifier_count_as_one_batch(arguments: Arguments) -> None:
    """Plain SGD does not forgive a gradient that is as many times too large as there are micro-batches."""
    found = []
    for rows, accumulated in ((4, 1), (1, 4)):
        options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated, "optim": "sgd"}
        methods = [FullFineTuning(max_norm=math.inf)]
        trainer = MethodTrainer(_models.bert(), arguments(**options), methods=methods, train_dataset=DATA)
        trainer.train()
        found.append(weights(trainer.model))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)


@final
@dataclass(frozen=True, kw_only=True)
class Elsewhere(Method):
    """Takes gradients where all weights are larger by a tenth."""

    name: ClassVar[str] = "elsewhere"
    summary: ClassVar[str] = "takes gradients elsewhere"
    source: ClassVar[str] = "this test"
    owns = frozenset({"second pass"})  # type: ignore[assignment]

    def begin(self, setting: Setting) -> Session:
        return _Elsewhere(setting)


class _Elsewhere(Session):
    def __init__(self, setting: Setting) -> None:
        self.parts, self.kept = setting.parts, list[Tensor]()

    def ascend(self, step: Step) -> None:
        for part in self.parts:
            for parameter in part.parameters:
                assert parameter.grad is not None
                self.kept.append(parameter.detach().clone())
                parameter.data.mul_(1.1)

    def descend(self) -> None:
        if self.kept:
            for part, kept in zip(self.parts, self.kept, strict=True):
                part.parameters[0].data.copy_(kept)
            self.kept = []


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_second_pass_takes_the_gradients_elsewhere(accumulated: int, arguments: Arguments) -> None:
    options = {"per_device_train_batch_size": BATCH // accumulated, "gradient_accumulation_steps": accumulated}
    trainer = MethodTrainer(_models.bert(), arguments(**options), methods=[Elsewhere()], train_dataset=DATA)
    trainer.train()

    model = _models.bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-3, weight_decay=0.0)
    for step in range(len(DATA) // BATCH):
        ids = DATA.ids[step * BATCH : (step + 1) * BATCH]
        moved = {name: parameter * 1.1 for name, parameter in model.named_parameters()}
        loss = torch.func.functional_call(model, moved, (), {"input_ids": ids, "labels": ids[:, 0] % 2}).loss
        gradients = torch.autograd.grad(loss, list(moved.values()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert_same_weights(trainer.model, model, 2e-6)


def test_weights_are_back_where_a_second_pass_fails(arguments: Arguments) -> None:
    calls = []

    class Fails(Told):
        def before_forward(self, moment: Moment) -> None:
            calls.append(moment)
            if len(calls) == 4:
                raise KeyboardInterrupt

    model = _models.bert()
    trainer = MethodTrainer(
        model, arguments(max_steps=1), methods=[Elsewhere(), Listener(make=Told)], train_dataset=DATA
    )
    trainer.train()
    after = weights(model)
    trainer = MethodTrainer(model, arguments(), methods=[Elsewhere(), Listener(make=Fails)], train_dataset=DATA)
    calls[:] = [Moment(step=0)] * 2
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert torch.equal(weights(model), after)


def test_losses_go_through_the_data_once_and_draw_nothing(arguments: Arguments) -> None:
    found: list[float] = []

    class Looks(Told):
        def start(self) -> None:
            state = torch.get_rng_state()
            losses = Listener.settings[-1].losses
            for loss in losses():
                assert not Listener.settings[-1].model.training
                loss.backward()
                found.append(loss.item())
            Listener.settings[-1].model.zero_grad()
            assert torch.equal(state, torch.get_rng_state())

    before = _models.bert()(input_ids=DATA.ids, labels=DATA.ids[:, 0] % 2).loss.item()
    options = {"train_sampling_strategy": "random"}
    plain = _models.bert()
    MethodTrainer(plain, arguments(**options), methods=["full"], train_dataset=DATA).train()
    trainer = MethodTrainer(
        _models.bert(), arguments(**options), methods=["full", Listener(make=Looks)], train_dataset=DATA
    )
    trainer.train()
    assert sum(found) / len(found) == pytest.approx(before)
    assert torch.equal(weights(trainer.model), weights(plain))


def test_outside_of_a_training_there_are_no_losses() -> None:
    model = _models.bert()
    with pytest.raises(MethodError, match="in a training only"):
        Setting(model=model, parts=components(model)).losses()


def owning(what: str, **functions: Any) -> Method:
    names = {"name": f"own-{what.replace(' ', '-')}", "owns": frozenset({what})}
    made: Any = type("Owner", (Method,), names | functions)
    return made()


def touching(what: str) -> Method:
    made: Any = type("Toucher", (Method,), {"name": f"touch-{what}", "touches": frozenset({what})})
    return made()


def laying_down(**settings: Any) -> Method:
    made: Any = type("Recipes", (Method,), {"name": "recipes", "recipe": lambda self: Recipe(**settings)})
    return made()


def test_rates_are_multiplied_and_scheduled(arguments: Arguments) -> None:
    def rates(self: Method, parts: Components) -> dict[str, float]:
        return {part.name: 0.5 if part.layer == 0 else 0.1 if part.role == "embedding" else 1.0 for part in parts}

    seen: list[dict[int, float]] = []

    def look(model: nn.Module, optimizer: Any, step: int) -> None:
        seen.append({id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]})

    trainer = MethodTrainer(
        _models.bert(),
        arguments(lr_scheduler_type="linear", weight_decay=0.1),
        methods=[owning("rates", rates=rates)],
        train_dataset=DATA,
        callbacks=[Before(look)],
    )
    trainer.train()
    for step, found in enumerate(seen):
        share = 1 - step / len(seen)
        for part in components(trainer.model):
            factor = 0.5 if part.layer == 0 else 0.1 if part.role == "embedding" else 1.0
            assert found[id(part.parameters[0])] == pytest.approx(RATE * factor * share)


def test_rates_of_one_tensors_parts_must_agree(arguments: Arguments) -> None:
    def rates(self: Method, parts: Components) -> dict[str, float]:
        return {part.name: 0.5 if part.role == "query" else 1.0 for part in parts}

    from evenkeel.testing._tiny import classifier

    method = owning("rates", rates=rates)
    trainer = MethodTrainer(classifier("gpt2"), arguments(), methods=[method], train_dataset=DATA)
    with pytest.raises(MethodError, match="parts of one tensor"):
        trainer.train()


def test_what_a_recipe_lays_down_takes_the_place_of_the_arguments(arguments: Arguments) -> None:
    recipe = {
        "epochs": 2.0,
        "learning_rate": 0.5,
        "warmup": 0.25,
        "schedule": "cosine",
        "weight_decay": 0.3,
        "eps": 0.1,
    }
    given = arguments()
    trainer = MethodTrainer(_models.bert(), given, methods=[laying_down(**recipe)], train_dataset=DATA)
    args = trainer.args
    assert (args.num_train_epochs, args.learning_rate, args.warmup_steps) == (2.0, 0.5, 0.25)
    assert (args.lr_scheduler_type, args.weight_decay, args.adam_epsilon) == ("cosine", 0.3, 0.1)
    assert (given.num_train_epochs, given.learning_rate) == (1, RATE)
    trainer.train()
    assert trainer.state.global_step == 2 * len(DATA) // BATCH


def test_adam_without_bias_correction(arguments: Arguments) -> None:
    methods = [FullFineTuning(max_norm=math.inf), laying_down(correct_bias=False)]
    found = []
    for more in ({}, {"optimizer": "clipped-adamw"}):
        trainer = MethodTrainer(_models.bert(), arguments(), methods=methods, train_dataset=DATA, **more)
        trainer.train()
        found.append(trainer.model)

    model = _models.bert()
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    for step in range(len(DATA) // BATCH):
        ids = DATA.ids[step * BATCH : (step + 1) * BATCH]
        model.zero_grad()
        model(input_ids=ids, labels=ids[:, 0] % 2).loss.backward()
        for parameter, (first, second) in zip(model.parameters(), moments, strict=True):
            assert parameter.grad is not None
            first.mul_(0.9).add_(0.1 * parameter.grad)
            second.mul_(0.999).add_(0.001 * parameter.grad**2)
            parameter.data -= RATE * first / (second.sqrt() + 1e-3)
    for trained in found:
        assert_same_weights(trained, model, 5e-6)


def test_the_optimizer_may_be_a_methods_own(arguments: Arguments) -> None:
    def optimizer(self: Method, plain: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return torch.optim.SGD(plain.param_groups, lr=plain.defaults["lr"])

    trainer = MethodTrainer(
        _models.bert(), arguments(), methods=[owning("update", optimizer=optimizer)], train_dataset=DATA
    )
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)


def test_phases_that_do_not_restart_go_on(arguments: Arguments) -> None:
    def phases(self: Method, parts: Components) -> tuple[Phase, ...]:
        everything = lambda part: True  # noqa: E731
        return tuple(
            Phase(name=str(place), trainable=everything, epochs=1.0, restart=restart)
            for place, restart in enumerate((True, False, True))
        )

    rates: list[float] = []
    states: list[int] = []

    def look(model: nn.Module, optimizer: Any, step: int) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        states.append(len(optimizer.state))

    trainer = MethodTrainer(
        _models.bert(),
        arguments(lr_scheduler_type="linear"),
        methods=[owning("phases", phases=phases)],
        train_dataset=DATA,
        callbacks=[Before(look)],
    )
    trainer.train()
    each = len(DATA) // BATCH
    expected = [RATE * (1 - step / (2 * each)) for step in range(2 * each)] + [
        RATE * (1 - step / each) for step in range(each)
    ]
    assert rates == pytest.approx(expected)
    assert [step for step, count in enumerate(states) if count == 0] == [0, 2 * each]


@pytest.mark.parametrize(
    ("methods", "options", "training", "said"),
    [
        ([touching("gradients")], {"in_backward": True}, {}, "changes gradients between backward .* leave in_backward"),
        ([touching("weights")], {"in_backward": True}, {}, "changes weights between backward"),
        ([Elsewhere()], {"in_backward": True}, {}, "elsewhere takes gradients a second time"),
        ([touching("gradients")], {"optimizer": "clipped-adamw"}, {}, "after they were clipped"),
        ([owning("update")], {"optimizer": "clipped-adamw"}, {}, "an optimizer of its own"),
        ([laying_down(correct_bias=False)], {"in_backward": True}, {}, "without bias correction"),
        ([Elsewhere()], {}, {"fp16": True, "use_cpu": False}, "bf16=True in place of fp16=True"),
        ([touching("forward")], {}, {"activation_checkpointing": True}, "activation checkpointing relies"),
        ([touching("forward")], {}, {"torch_compile": True}, "torch_compile=True relies"),
        ([touching("result")], {}, {"load_best_model_at_end": True}, "would overwrite"),
        ([Listener()], {}, {"auto_find_batch_size": True}, "set the batch size yourself"),
    ],
)
def test_ways_of_training_without_room_for_a_method_are_refused(
    methods: list[Method], options: dict[str, Any], training: dict[str, Any], said: str, arguments: Arguments
) -> None:
    args = arguments()
    for name, value in training.items():
        object.__setattr__(args, name, value)  # some of them are refused on a CPU, before we see them
    with pytest.raises(MethodError, match=said):
        MethodTrainer(_models.bert(), args, methods=methods, train_dataset=DATA, **options)


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_computes_activations_again_by_itself_is_refused(nested: bool, arguments: Arguments) -> None:
    model = _models.bert()
    for module in (model.bert.encoder.layer[0],) if nested else model.modules():
        module.gradient_checkpointing = True  # as the model's own switch sets it
    said = "touch-forward changes .* activation checkpointing, which is on in this model, relies"
    with pytest.raises(MethodError, match=said):
        MethodTrainer(model, arguments(), methods=[touching("forward")], train_dataset=DATA)
    MethodTrainer(model, arguments(), methods=[Listener()], train_dataset=DATA)


@pytest.mark.parametrize("way", ["fsdp", "deepspeed"])
def test_methods_that_act_on_whole_parameters_refuse_shards(way: str, arguments: Arguments) -> None:
    args = arguments()
    object.__setattr__(args, way, "given")
    with pytest.raises(MethodError, match="listener acts on whole parameters"):
        MethodTrainer(_models.bert(), args, methods=[Listener()], train_dataset=DATA)


@pytest.mark.parametrize("method", [owning("rates"), owning("update"), laying_down(correct_bias=False)])
def test_methods_that_update_in_their_own_way_refuse_a_given_optimizer(method: Method, arguments: Arguments) -> None:
    model = _models.bert()
    given = (torch.optim.AdamW(model.parameters()), None)
    with pytest.raises(MethodError, match=r"was given optimizers=\(...\); keep one"):
        MethodTrainer(model, arguments(), methods=[method], train_dataset=DATA, optimizers=given)


def test_a_mix_says_what_its_methods_touch() -> None:
    mix = Mix((touching("weights"), Listener(), touching("forward")))
    assert mix.touches == {"weights": "touch-weights", "forward": "touch-forward"}
    assert mix.acting == ("listener",)
