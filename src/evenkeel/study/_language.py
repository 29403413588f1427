"""What a causal language model is given and asked: a prompt, and the answer that it is to write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from evenkeel.errors import DataError, ModelError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["IGNORED", "Written", "generated", "likelihoods", "partners", "tokenised", "written"]

IGNORED = -100  # the label of a token that is not learnt, in transformers and torch
_LOGITS_AT_ONCE = 2**26  # 256 MiB in float32: a vocabulary may be large
_PROMPTS_AT_ONCE = 64
_SEED = 0  # pairs of examples are the same in every run
_PAD = 0  # any token will do where attention does not look


@final
@dataclass(frozen=True, kw_only=True)
class Written:
    """A prompt and an answer, in tokens.

    Attributes:
        prompt: the prompt, with what the tokenizer begins a text with; at least one token.
        answer: the answer, with the end of text.
    """

    prompt: Sequence[int]
    answer: Sequence[int]

    def joined(self, max_length: int) -> list[int]:
        """Return all tokens, ``max_length`` at most: the prompt loses its beginning, but for its first token."""
        room = max_length - len(self.answer)
        kept = (
            self.prompt if len(self.prompt) <= room else [self.prompt[0], *self.prompt[len(self.prompt) - room + 1 :]]
        )
        return [*kept, *self.answer]


def tokenised(part: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, where: str) -> Dataset:
    """Tokenise prompts and answers; the loss is to be that of the answers alone.

    Prompt and answer are tokenised apart, with a space between them unless the prompt ends in white space.

    Args:
        part: columns ``text`` and ``label``.
        tokenizer: the model's tokenizer.
        max_length: of prompt and answer together, in tokens; longer prompts lose their beginning.
        where: what the messages call the part.

    Returns:
        Columns ``input_ids``, ``attention_mask``, ``labels`` (``IGNORED`` on the prompt) and ``length``.

    Raises:
        DataError: if a prompt tokenises to nothing, or an answer leaves no room for its prompt.
        ModelError: if the tokenizer has no token for the end of a text.
    """
    rows = list(_rows(part, tokenizer, max_length, where))
    ids = [row.joined(max_length) for row in rows]
    labels = [
        [IGNORED] * (len(joined) - len(row.answer)) + list(row.answer) for row, joined in zip(rows, ids, strict=True)
    ]
    lengths = [len(joined) for joined in ids]
    masks = [[1] * length for length in lengths]
    return type(part).from_dict({"input_ids": ids, "attention_mask": masks, "labels": labels, "length": lengths})


def _rows(part: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, where: str) -> Iterator[Written]:
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError(
            "the model's tokenizer has no token for the end of a text, so no answer would end; choose another"
        )
    texts = part["text"][:]
    answers = [
        label if text[-1].isspace() else f" {label}" for text, label in zip(texts, part["label"][:], strict=True)
    ]
    prompts = tokenizer(texts)["input_ids"]
    bare = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found = tokenizer(answers, add_special_tokens=False)["input_ids"]
    for row, (prompt, words, answer) in enumerate(zip(prompts, bare, found, strict=True), start=1):
        if not words or not answer:
            what = "answer" if words else "prompt"
            raise DataError(f"{where}: the {what} of example {row} tokenises to nothing; correct it or drop it")
        if len(answer) + 1 > max_length - 2:
            raise DataError(
                f"{where}: the answer of example {row} has {len(answer)} tokens, and prompt and answer may have "
                f"{max_length}; shorten it, or raise max_length as far as the model allows"
            )
        yield Written(prompt=prompt[:-1] if prompt[-1] == end else prompt, answer=[*answer, end])


def written(part: Dataset) -> list[Written]:
    """Take prompts and answers apart again.

    Args:
        part: what :func:`tokenised` returned.

    Returns:
        One for each example.
    """
    found = []
    for ids, labels in zip(part["input_ids"], part["labels"], strict=True):
        start = len(labels) - sum(label != IGNORED for label in labels)
        found.append(Written(prompt=ids[:start], answer=ids[start:]))
    return found


def partners(count: int) -> np.ndarray:
    """Pair examples at random, the same way every time.

    Args:
        count: how many there are.

    Returns:
        For each example the place of the other one of its pair, shape ``[count]``; its own for the odd one out.
    """
    order = np.random.default_rng(_SEED).permutation(count)
    found = np.arange(count)
    half = count // 2
    one, other = order[:half], order[half : 2 * half]
    found[one], found[other] = other, one
    return found


def likelihoods(model: PreTrainedModel, rows: Sequence[Written], max_length: int) -> np.ndarray:
    """Ask how likely the answers are, after their own prompts and after those of their partners.

    Args:
        model: the model, in evaluation mode.
        rows: prompts and answers, ``N`` of them.
        max_length: of prompt and answer together, in tokens.

    Returns:
        Shape ``[N, 4]``: the logarithm of the answer's likelihood after its prompt, in nats; the answer's tokens, the
        end of text among them; the logarithm of its likelihood by the frequencies of tokens in all answers; that of its
        likelihood after the prompt of its partner.
    """
    counts = Counter(token for row in rows for token in row.answer)
    total = sum(counts.values())
    crossed = [
        Written(prompt=rows[other].prompt, answer=row.answer)
        for row, other in zip(rows, partners(len(rows)), strict=True)
    ]
    return np.stack(
        [
            _log_likelihoods(model, rows, max_length),
            np.array([len(row.answer) for row in rows], dtype=np.float64),
            np.array([sum(np.log(counts[token] / total) for token in row.answer) for row in rows]),
            _log_likelihoods(model, crossed, max_length),
        ],
        axis=1,
    )


def _log_likelihoods(model: PreTrainedModel, rows: Sequence[Written], max_length: int) -> np.ndarray:
    ids = [row.joined(max_length) for row in rows]
    found = np.empty(len(rows))
    at_once = max(1, _LOGITS_AT_ONCE // (model.config.get_text_config().vocab_size * max(map(len, ids))))
    order = sorted(range(len(rows)), key=lambda row: len(ids[row]))
    with torch.no_grad():
        for start in range(0, len(order), at_once):
            places = order[start : start + at_once]
            width = len(ids[places[-1]])
            inputs = torch.tensor([ids[row] + [_PAD] * (width - len(ids[row])) for row in places])
            labels = torch.full_like(inputs, IGNORED)
            for line, row in enumerate(places):
                labels[line, len(ids[row]) - len(rows[row].answer) : len(ids[row])] = torch.tensor(rows[row].answer)
            mask = torch.tensor([[1] * len(ids[row]) + [0] * (width - len(ids[row])) for row in places])
            logits = model(input_ids=inputs.to(model.device), attention_mask=mask.to(model.device)).logits
            losses = functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2),
                labels[:, 1:].to(model.device),
                ignore_index=IGNORED,
                reduction="none",
            )
            found[places] = -losses.sum(dim=1).double().cpu().numpy()
    return found


def generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Written], max_length: int
) -> list[str]:
    """Let the model write: the likeliest token each time, until the end of text.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        rows: the prompts, and answers whose longest bounds what is written.
        max_length: of prompt and what is written together, in tokens.

    Returns:
        What was written, without special tokens and white space around.
    """
    longest = max(len(row.answer) for row in rows)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row].prompt))
    found = [""] * len(rows)
    for start in range(0, len(order), _PROMPTS_AT_ONCE):
        places = order[start : start + _PROMPTS_AT_ONCE]
        prompts = [list(rows[row].prompt) for row in places]
        room = min(longest, max_length - len(prompts[-1]))
        for row, tokens in zip(places, _greedy(model, prompts, room, tokenizer.eos_token_id), strict=True):
            found[row] = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    return found


def _greedy(model: Any, prompts: Sequence[list[int]], room: int, end: int) -> list[list[int]]:
    """Return what follows each prompt, ``room`` tokens at most, up to the end of text."""
    width = max(map(len, prompts))
    inputs = torch.tensor([[_PAD] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    settings: Any = GenerationConfig
    own = model.generation_config
    # The model's own settings, such as a penalty for repeating words, would be part of the score.
    model.generation_config = settings(do_sample=False, max_new_tokens=room, pad_token_id=_PAD, eos_token_id=end)
    try:
        texts = model.generate(inputs, attention_mask=mask)[:, width:].tolist()
    finally:
        model.generation_config = own
    return [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in texts]
