"""Real architectures from transformers, shrunk until a training step takes milliseconds; built from a configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    set_seed,
)

HIDDEN, VOCABULARY, LENGTH = 16, 32, 8

_BERT_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_attention_heads": 2,
    "intermediate_size": 2 * HIDDEN,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}


def bert(layers: int = 2, *, seed: int = 0, **changes: Any) -> BertForSequenceClassification:
    set_seed(seed)
    return BertForSequenceClassification(BertConfig(**_BERT_LIKE | {"num_hidden_layers": layers} | changes))


def masked_bert(layers: int = 2) -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(**_BERT_LIKE | {"num_hidden_layers": layers}))


def roberta(layers: int = 2) -> RobertaForSequenceClassification:
    return RobertaForSequenceClassification(RobertaConfig(**_BERT_LIKE | {"num_hidden_layers": layers}))


def electra(layers: int = 2) -> ElectraForSequenceClassification:
    """With embeddings narrower than the blocks, as the published small ELECTRA has them."""
    return ElectraForSequenceClassification(
        ElectraConfig(**_BERT_LIKE | {"num_hidden_layers": layers, "embedding_size": HIDDEN // 2})
    )


def distilbert(layers: int = 2) -> DistilBertForSequenceClassification:
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=VOCABULARY, dim=HIDDEN, n_heads=2, hidden_dim=32, n_layers=layers, dropout=0.0)
    )


def llama(layers: int = 2) -> LlamaForSequenceClassification:
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
        )
    )


ALL = {"bert": bert, "roberta": roberta, "electra": electra, "distilbert": distilbert, "llama": llama}


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Random token rows whose label is the parity of the first token: learnable, and different for every row."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index, 0] % 2}


def backward(model: PreTrainedModel, *, rows: int = 4) -> None:
    """Give every parameter of a classifier a gradient."""
    data = Rows(rows)
    model(input_ids=data.ids, labels=data.ids[:, 0] % 2).loss.backward()
