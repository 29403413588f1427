"""The embedded model: small enough to ship, whole, of the grammar's words, and worth its pretraining."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.tasks.grammar._finetune import finetune

from evenkeel.models import find_model
from evenkeel.tasks.grammar import VOCABULARY, pairs, rows

FOLDER = Path(find_model("tiny").location)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


def test_the_weights_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4 * 2**20
    assert not list(FOLDER.glob("*.bin"))


def test_every_word_is_one_known_token(tokenizer: Any) -> None:
    for word in VOCABULARY:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1
        assert ids != [tokenizer.unk_token_id]
    assert len(tokenizer) == len(VOCABULARY) + 5


def test_a_pair_has_two_segments_and_fits(tokenizer: Any) -> None:
    positions = transformers.AutoConfig.from_pretrained(FOLDER).max_position_embeddings
    assert tokenizer.model_max_length == positions
    for first, second in pairs(500, seed=1):
        encoded = tokenizer(first, second)
        a, b = len(first.split()), len(second.split())
        assert encoded["token_type_ids"] == [0] * (a + 2) + [1] * (b + 1)
        assert len(encoded["input_ids"]) <= positions


def test_case_and_glued_punctuation_make_no_difference(tokenizer: Any) -> None:
    assert tokenizer("The sailors sleep.")["input_ids"] == tokenizer("the sailors sleep .")["input_ids"]
    assert tokenizer.decode(tokenizer("the ship sleeps .")["input_ids"]).split()[2] == "[UNK]"


def test_all_encoder_weights_are_in_the_file() -> None:
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        FOLDER, dtype=torch.float32, output_loading_info=True
    )
    new = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    assert set(info["missing_keys"]) == new
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_it_has_learnt_the_grammar(tokenizer: Any) -> None:
    """Masked words are guessed far better than by their frequency, and verbs agree with their subjects."""
    model = transformers.BertForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    with torch.no_grad():
        for text, right, wrong in [
            ("the sailor [MASK] .", "sleeps", "sleep"),
            ("the sailors [MASK] .", "sleep", "sleeps"),
            ("the sailors who the baker greets [MASK] .", "sleep", "sleeps"),
            ("the baker [MASK] greeted by these sailors .", "is", "are"),
        ]:
            encoded = tokenizer(text, return_tensors="pt")
            at = int((encoded["input_ids"] == tokenizer.mask_token_id).nonzero()[0, 1])
            logits = model(**encoded).logits[0, at]
            ids = tokenizer.convert_tokens_to_ids([right, wrong])
            assert logits[ids[0]] > logits[ids[1]] + 2, text


def test_the_card_tells_how_it_was_made() -> None:
    card = (FOLDER / "card.md").read_text(encoding="utf-8")
    assert "scripts/pretrain_tiny.py" in card
    assert "Held-out masked-LM loss" in card


@pytest.mark.slow
def test_pretraining_is_worth_much_on_acceptability() -> None:
    seeds = (1, 2, 3)
    start = {
        pretrained: statistics.mean(
            finetune("acceptability", pretrained=pretrained, lr=5e-4, epochs=3, seed=seed) for seed in seeds
        )
        for pretrained in (True, False)
    }
    labels = rows("acceptability", "validation")["label"]
    assert start[True] > sum(labels) / len(labels) + 0.2
    assert start[True] > start[False] + 0.2
