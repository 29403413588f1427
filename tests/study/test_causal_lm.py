"""A causal language model that learns to answer, from a file to a run's result."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.study import _shared
from tests.study._small import NOUNS, MakePlan, write_csv
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from evenkeel.errors import DataError, ModelError
from evenkeel.study import Plan, RunResult, Study, StudyFolder, execute, prepare
from evenkeel.study._language import IGNORED, Written, generated, likelihoods, partners, written
from evenkeel.study.engines import execute_job

WORDS = ("<end>", "?", "the", *NOUNS, "red", "round", "colour", "shape", "yes", "no", "indeed")
POSITIONS = 12
ANSWERS = {"film": "red", "book": "round", "play": "red", "song": "yes indeed"}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "writer"
    set_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="?").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plan(make_plan: MakePlan, language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """Make a plan of questions and answers; rows replace those of the file."""
    folder = tmp_path_factory.mktemp("answers")

    def made(metric: str = "exact_match", *, table: Any = None, training: Any = None, **changes: Any) -> Plan:
        rows = table or [
            (f"the {what} {noun}", answer) for noun, answer in ANSWERS.items() for what in ("colour", "shape")
        ]
        path = write_csv(
            folder / f"{abs(hash(str(rows)))}.csv", rows * (1 if table else 4), header=("prompt", "answer")
        )
        task = {"name": "answers", "train": path, "validation": path, "metric": metric}
        recipe = {"learning_rate": 2e-2, "epochs": 4.0} | (training or {})
        return make_plan(tasks=[task], models=[str(language_model)], training=recipe, **changes)

    return made


def first(plan: Plan, **options: Any) -> RunResult:
    job = Study(plan, StudyFolder(Path("unused"))).jobs()[0]
    return execute(job.spec, job.task, model=job.model, measures=job.measures, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def result(plan: Callable[..., Plan], saved: Path) -> RunResult:
    return first(plan(measures={"layer_replacement": True}), save_to=saved)


# --- tokens


def test_the_loss_is_the_answers_alone(plan: Callable[..., Plan]) -> None:
    made = plan()
    prepared = prepare(made.tasks[0], made.models[0], 128)
    row = prepared.parts["train"][7]
    assert prepared.tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        "the",
        "shape",
        "song",
        "yes",
        "indeed",
        "<end>",
    ]
    assert row["labels"] == [IGNORED] * 3 + row["input_ids"][3:]
    assert row["length"] == 6
    assert written(prepared.parts["train"])[7] == Written(prompt=row["input_ids"][:3], answer=row["input_ids"][3:])


def test_long_prompts_lose_their_beginning(plan: Callable[..., Plan]) -> None:
    made = plan(table=[("the " + "film " * 30 + "?", "yes indeed"), ("the film ?", "no")])
    prepared = prepare(made.tasks[0], made.models[0], 128)
    tokens = prepared.tokenizer.convert_ids_to_tokens(prepared.parts["train"][0]["input_ids"])
    assert tokens == ["the", *["film"] * 7, "?", "yes", "indeed", "<end>"]
    assert len(tokens) == POSITIONS == prepared.max_length


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            [("the film", "yes"), ("the", "no " * 10)],
            "answer of example 2 has 10 tokens, and prompt .* may have 12; shor",
        ),
        ([("\u200b\u2009x", "yes"), ("the", " \u200a")], "example 2 has no text in column 'answer'"),
        ([("the", "yes"), ("film", "yes")], "all examples of the train part have the answer 'yes'"),
    ],
)
def test_what_cannot_be_answered_is_refused(plan: Callable[..., Plan], table: list[Any], said: str) -> None:
    made = plan(table=table)
    with pytest.raises(DataError, match=said):
        prepare(made.tasks[0], made.models[0], 128)


def test_an_encoder_is_refused(plan: Callable[..., Plan]) -> None:
    made = plan().model_copy(update={"models": ("tiny",)})
    with pytest.raises(ModelError, match="'tiny' was saved as BertForMaskedLM, which is no causal language model"):
        Study(made, StudyFolder(Path("unused"))).jobs()


# --- what the model says


@pytest.fixture(scope="module")
def asked(saved: Path, result: RunResult, plan: Callable[..., Plan]) -> tuple[Any, Any, list[Written]]:
    made = plan()
    prepared = prepare(made.tasks[0], made.models[0], 128)
    return AutoModelForCausalLM.from_pretrained(saved).eval(), prepared.tokenizer, written(prepared.parts["validation"])


def slow_likelihood(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        log = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return sum(log[len(prompt) - 1 + place, token].item() for place, token in enumerate(answer))


def test_likelihoods_are_those_of_one_example_at_a_time(asked: tuple[Any, Any, list[Written]]) -> None:
    model, _, rows = asked
    rows = [*rows[:5], Written(prompt=rows[0].prompt[1:], answer=rows[7].answer)]
    found = likelihoods(model, rows, POSITIONS)
    others = partners(len(rows))
    tokens = [token for row in rows for token in row.answer]
    for row, (own, count, frequent, crossed), other in zip(rows, found, others, strict=True):
        assert own == pytest.approx(slow_likelihood(model, list(row.prompt), list(row.answer)), abs=1e-4)
        assert crossed == pytest.approx(slow_likelihood(model, list(rows[other].prompt), list(row.answer)), abs=1e-4)
        assert count == len(row.answer)
        assert frequent == pytest.approx(sum(math.log(tokens.count(token) / len(tokens)) for token in row.answer))


def test_what_is_written_is_the_likeliest_token_each_time(asked: tuple[Any, Any, list[Written]]) -> None:
    model, tokenizer, rows = asked
    own = model.generation_config
    rows = [*rows[:8], Written(prompt=rows[0].prompt[1:], answer=rows[0].answer)]
    texts = generated(model, tokenizer, rows, POSITIONS)
    for row, text in zip(rows, texts, strict=True):
        ids = list(row.prompt)
        for _ in range(3):  # the longest answer, with its end
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(ids[len(row.prompt) :], skip_special_tokens=True)
    assert model.generation_config is own


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_partners_are_mutual(count: int) -> None:
    others = partners(count)
    assert (others[others] == np.arange(count)).all()
    assert (others == np.arange(count)).sum() == count % 2


# --- runs


def test_it_learns_to_answer(result: RunResult) -> None:
    table, outcome = result.tables["predictions"].to_pydict(), result.outcome
    right = [label == prediction for label, prediction in zip(table["label"], table["prediction"], strict=True)]
    assert outcome["scores"] == {"validation": np.mean(right)}
    assert outcome["scores"]["validation"] > 0.9
    assert outcome["majority"] == {"validation": 0.5}
    own, tokens, frequent, _ = np.array(table["logits"]).T
    every, baseline = outcome["all_scores"]["validation"], outcome["all_majority"]["validation"]
    assert every["inverse_perplexity"] == pytest.approx(math.exp(own.sum() / tokens.sum()), rel=1e-5)
    assert baseline["inverse_perplexity"] == pytest.approx(math.exp(frequent.sum() / tokens.sum()), rel=1e-5)
    assert (outcome["failed"], outcome["failed_by_majority"], outcome["constant"]) == (False, False, False)
    rows = result.tables["replacement"].to_pylist()
    assert rows[0]["loss"] == pytest.approx(-math.log(every["inverse_perplexity"]))
    assert rows[0]["score"] == outcome["scores"]["validation"]
    json.dumps(outcome, allow_nan=False)


def test_perplexity_asks_for_no_writing(plan: Callable[..., Plan], result: RunResult) -> None:
    other = first(plan("inverse_perplexity"))
    assert other.outcome["all_scores"] == {
        "validation": {"inverse_perplexity": result.outcome["all_scores"]["validation"]["inverse_perplexity"]}
    }
    assert set(other.tables["predictions"]["prediction"].to_pylist()) == {""}
    assert (other.outcome["failed"], other.outcome["constant"]) == (False, False)


def test_a_model_that_learns_nothing_has_failed(plan: Callable[..., Plan]) -> None:
    for metric in ("exact_match", "inverse_perplexity"):
        outcome = first(plan(metric, training={"learning_rate": 1e-30, "epochs": 1})).outcome
        assert (outcome["failed"], outcome["failed_by_majority"]) == (True, True)


def test_answers_that_have_nothing_to_do_with_prompts_fail(plan: Callable[..., Plan]) -> None:
    rng = np.random.default_rng(0)
    table = [("the film ?", str(rng.choice(["yes", "no"]))) for _ in range(40)]
    outcome = first(plan("inverse_perplexity", table=table)).outcome
    assert outcome["failed"] is True


def test_a_language_model_that_diverges_is_a_result(plan: Callable[..., Plan]) -> None:
    result = first(plan(training={"learning_rate": 1e30, "epochs": 1}))
    assert result.diverged
    assert result.outcome["scores"] == {"validation": None}
    json.dumps(result.outcome, allow_nan=False)


def test_precision_holds_for_answers_as_well(plan: Callable[..., Plan], result: RunResult) -> None:
    outcome = first(plan(training={"precision": "bf16"})).outcome
    assert outcome["scores"]["validation"] > 0.9
    exact = result.outcome["all_scores"]["validation"]["inverse_perplexity"]
    assert outcome["all_scores"]["validation"]["inverse_perplexity"] == pytest.approx(exact, rel=0.1)
    assert outcome["all_scores"]["validation"]["inverse_perplexity"] != pytest.approx(exact, rel=1e-6)


def test_methods_train_language_models_too(plan: Callable[..., Plan]) -> None:
    result = first(plan(methods=["component-clip+r-drop"], training={"epochs": 1}))
    assert not result.diverged
    assert result.outcome["steps"] == 4


@pytest.mark.slow
@pytest.mark.matrix
def test_two_processes_give_what_one_gives(plan: Callable[..., Plan], language_model: Path, tmp_path: Path) -> None:
    shutil.copytree(language_model, tmp_path / "plain")
    config = json.loads((language_model / "config.json").read_text(encoding="utf-8"))
    config |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made = plan(methods=["component-clip"]).model_copy(update={"models": (str(tmp_path / "plain"),)})
    job = Study(made, StudyFolder(Path("unused"))).jobs()[0]
    ours, theirs = execute_job(job, lambda: False), execute_job(_shared.with_processes(job, 2), lambda: False)
    assert theirs.tables["log"]["loss"].to_pylist() == pytest.approx(ours.tables["log"]["loss"].to_pylist(), abs=1e-3)
    for column in ("part", "example", "label", "prediction"):
        assert theirs.tables["predictions"][column].equals(ours.tables["predictions"][column])
    assert theirs.outcome["scores"] == ours.outcome["scores"]
