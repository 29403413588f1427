"""Tiny models of many architectures, and rows of tokens that they can learn from."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    set_seed,
)

__all__ = ["ARCHITECTURES", "CAUSAL", "Rows", "classifier", "language_model"]

_WIDTH, _VOCABULARY, _LENGTH = 16, 32, 8
_COMMON: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_RELATIVE: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 4,
    "max_relative_positions": 8,
}
_OWN: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"bos_token_id": 1, "eos_token_id": 2},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8},
    "deberta-v2": _RELATIVE,
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4, "bos_token_id": 1, "eos_token_id": 2},
    "electra": {"embedding_size": _WIDTH // 2},
    "albert": {"embedding_size": _WIDTH // 2},
    "gpt2": {"n_embd": _WIDTH, "n_layer": 3, "n_head": 2, "n_positions": 16, "n_inner": 2 * _WIDTH},
    "llama": {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2},
}
ARCHITECTURES = tuple(_OWN)
CAUSAL = ("gpt2", "llama")
_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "classifier_dropout_prob"),
    *("attention_dropout", "embedding_dropout", "mlp_dropout", "summary_dropout", "pooler_dropout"),
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"),
)


def _config(architecture: str, dropout: float, **changes: Any) -> Any:
    config = AutoConfig.for_model(architecture, **_COMMON | _OWN[architecture] | changes)
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    return config


def classifier(architecture: str, *, classes: int = 2, dropout: float = 0.0, seed: int = 0) -> PreTrainedModel:
    """Build a sequence classifier of three layers.

    Args:
        architecture: one of ``ARCHITECTURES``.
        classes: how many; 1 for regression.
        dropout: the rate of every dropout.
        seed: of torch's global generator, from which weights are drawn.

    Returns:
        The model.
    """
    set_seed(seed)
    made: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
        _config(architecture, dropout, num_labels=classes)
    )
    return made


def language_model(architecture: str, *, dropout: float = 0.0, seed: int = 0) -> PreTrainedModel:
    """Build a causal language model of three layers, see :func:`classifier`."""
    set_seed(seed)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(_config(architecture, dropout))  # type: ignore[no-untyped-call]
    return made


@final
class Rows(Dataset[dict[str, Tensor]]):
    """Rows of tokens, some of them padded; what is to be learnt is told by the first token."""

    def __init__(self, count: int, *, kind: str = "classification") -> None:
        """Draw ``count`` rows for ``kind``: ``"classification"``, ``"regression"`` or ``"causal-lm"``."""
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(3, _VOCABULARY, (count, _LENGTH), generator=generator)
        lengths = torch.randint(_LENGTH // 2, _LENGTH + 1, (count, 1), generator=generator)
        self._mask = (torch.arange(_LENGTH) < lengths).long()
        self._ids *= self._mask  # 0 is padding
        self._kind = kind

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids, mask = self._ids[index], self._mask[index]
        labels = {
            "classification": ids[0] % 2,
            "regression": ids[0] / _VOCABULARY,
            "causal-lm": ids.masked_fill(mask == 0, -100),
        }
        return {"input_ids": ids, "attention_mask": mask, "labels": labels[self._kind]}
