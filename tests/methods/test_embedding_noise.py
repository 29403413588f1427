from __future__ import annotations

import pytest
import torch
from tests import _models
from tests.methods._passes import hooks, words
from tests.partition import _zoo
from torch import Tensor, nn

from evenkeel.errors import MethodError
from evenkeel.methods._embedding_noise import changed_embeddings, token_embeddings

IDS = _models.Rows(2).ids


def shifted(_: int, embedded: Tensor) -> Tensor:
    return embedded + 0.5


def test_a_changed_pass_is_one_on_changed_embeddings() -> None:
    model = _models.bert().eval()
    plain = model(input_ids=IDS).logits
    with changed_embeddings(token_embeddings(model, "r3f"), shifted):
        found = model(input_ids=IDS).logits
    torch.testing.assert_close(found, model(inputs_embeds=words(model, IDS) + 0.5).logits)
    assert not torch.equal(found, plain)
    assert torch.equal(model(input_ids=IDS).logits, plain)
    assert hooks(model) == 0


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_positions_masks_and_pooling_are_those_of_the_tokens(name: str) -> None:
    model = _models.ALL[name]().eval()
    padding = model.config.pad_token_id
    ids = IDS.clone()
    ids[0, 5:] = padding  # RoBERTa finds positions from it, Llama the last token
    mask = (ids != padding).long()
    plain = model(input_ids=ids, attention_mask=mask).logits
    with changed_embeddings(token_embeddings(model, "r3f"), lambda _, embedded: embedded + 0.0):
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, plain)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_and_a_decoder_with_one_table_are_both_changed(name: str) -> None:
    model = _zoo.fast(name).eval()
    calls: list[int] = []

    def doubled(call: int, embedded: Tensor) -> Tensor:
        calls.append(call)
        return 2 * embedded

    with torch.no_grad():
        with changed_embeddings(token_embeddings(model, "r3f"), doubled):
            found = model(**_zoo.inputs(model)).logits
        model.get_input_embeddings().weight.mul_(2)
        wanted = model(**_zoo.inputs(model)).logits
    assert calls == [0, 1]
    torch.testing.assert_close(found, wanted)
    assert hooks(model) == 0


def test_an_exception_leaves_no_hook() -> None:
    model = _models.bert()
    with pytest.raises(KeyboardInterrupt), changed_embeddings(token_embeddings(model, "r3f"), shifted):
        raise KeyboardInterrupt
    assert hooks(model) == 0


def test_a_pass_without_tokens_is_an_error() -> None:
    model = _models.bert()
    given = words(model, IDS)
    with (
        pytest.raises(MethodError, match="did not embed its input tokens.*; give it input_ids"),
        changed_embeddings(token_embeddings(model, "r3f"), shifted),
    ):
        model(inputs_embeds=given)
    assert hooks(model) == 0


class Silent(nn.Module):
    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


@pytest.mark.parametrize("model", [nn.Linear(1, 1), Silent()], ids=["none", "not implemented"])
def test_a_model_that_does_not_tell_its_embeddings_is_refused(model: nn.Module) -> None:
    with pytest.raises(
        MethodError, match=r"r3f changes the embeddings .* give the model a method get_input_embeddings"
    ):
        token_embeddings(model, "r3f")
