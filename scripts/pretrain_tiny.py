"""Pretrain ``tiny``, the embedded BERT, on the embedded grammar, and save it as package data.

    OMP_NUM_THREADS=1 python scripts/pretrain_tiny.py

Text, masks, initial weights and order are fixed by seeds: the same versions on the same kind of machine repeat the
model. Half of the text is single sentences, half unlabelled pairs with segment ids; none of it occurs in a validation
or test part of an embedded task. The model guesses hidden words (masked LM), and finds words that were exchanged for
others, as in ELECTRA (Clark et al. 2020, arXiv 2003.10555) but without a generator. No label of a task is used.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

from evenkeel.tasks.grammar import VOCABULARY, WORD_CLASSES, pairs, sentences

OUT = Path(__file__).parents[1] / "src" / "evenkeel" / "models" / "tiny"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
POSITIONS = 64
HIDDEN = 0.15  # share of words that the model must guess
RATES = (0.0, 0.0, 0.1, 0.2, 0.4, 0.8)  # shares of words exchanged in a text, all equally likely
MOST_ALONE = 0.2  # and at most so many in a single sentence: its words say little about each other
MOST_TO_GUESS = 0.3  # from this share on nothing is guessed: there is no context left to guess from
WEIGHTS = (1.0, 3.0, 1.0)  # of the losses of guessing, finding and judging
POOL = 100  # batches that are sorted by length together
HELD_OUT = 500  # sentences and pairs that the final loss is measured on


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: one token per lower-cased word, a pair as ``[CLS] a [SEP] b [SEP]``."""
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(SPECIAL + VOCABULARY)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # parts words from punctuation: "sleeps." is two tokens
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL},
    )


def make_model(layers: int, width: int, heads: int) -> BertForMaskedLM:
    """Return the model with fresh weights, made so that like attends to like.

    Keys start equal to queries: a word then looks at itself in the other sentence from the first step on, which so small
    a model otherwise takes many thousand steps to discover. (Trockman and Kolter 2023, arXiv 2305.09828, go further.)
    """
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(VOCABULARY),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,  # the text is endless, and dropout delays comparing one sentence with the other
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(3)  # at first a word counts more than where it stands
        for block in model.bert.encoder.layer:
            block.attention.self.key.weight.copy_(block.attention.self.query.weight)
    config.initializer_range = BertConfig().initializer_range
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = BertConfig().hidden_dropout_prob  # fine-tuning's
    return model


def batches(
    texts: Sequence[str | tuple[str, str]], tokenizer: PreTrainedTokenizerFast, size: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Yield padded batches in random order, without end; texts of like length share a batch."""
    encoded = [tokenizer(*((text,) if isinstance(text, str) else text)) for text in texts]
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(encoded), generator=generator).tolist()
        for start in range(0, len(order), size * POOL):
            pool = sorted(order[start : start + size * POOL], key=lambda at: len(encoded[at]["input_ids"]))
            starts = list(range(0, len(pool) - size + 1, size))
            for at in torch.randperm(len(starts), generator=generator).tolist():
                chosen = [encoded[index] for index in pool[starts[at] : starts[at] + size]]
                yield dict(tokenizer.pad(chosen, return_tensors="pt"))


@dataclass(frozen=True, kw_only=True)
class Spoilt:
    """A batch of B texts of T tokens, with questions about it.

    Attributes:
        inputs: the tensors that the model takes, shape ``[B, T]``, among them ``labels``: the hidden words to guess.
        exchanged: which of the words seen were exchanged, shape ``[B, T]``.
    """

    inputs: dict[str, Tensor]
    exchanged: Tensor


class Spoiler:
    """Hides words for the model to guess, and exchanges others for it to find.

    Words are exchanged for others of their class, or in pairs for one of the same sentence, which then changes places
    with it. How many varies from text to text: where there are many, as early in training only such are found, the
    model learns to compare the sentences of a pair at all. Of a pair the second sentence alone is changed, and not its
    determiners, which are all alike.

    Args:
        tokenizer: gives the words their numbers.
        seed: seeds the choices.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._draw = random.Random(seed)
        self._mask = tokenizer.mask_token_id
        classes = [tokenizer.convert_tokens_to_ids(list(words)) for words in WORD_CLASSES]
        self._likes = {word: words for words in classes for word in words}
        self._same = set(next(words for words in classes if tokenizer.convert_tokens_to_ids("the") in words))

    def __call__(self, batch: dict[str, Tensor]) -> Spoilt:
        """Return the batch with words hidden and exchanged."""
        ids, second = batch["input_ids"], batch["token_type_ids"] == 1
        pair = second.any(1)
        rate = torch.tensor([self._draw.choice(RATES) for _ in ids])
        rate = torch.where(pair, rate, rate.clamp(max=MOST_ALONE))
        may = (ids >= len(SPECIAL)) & (second | ~pair[:, None])
        chosen = may & (torch.rand(ids.shape, generator=self._generator) < rate[:, None])
        exchanged = ids.clone()
        for row in chosen.any(1).nonzero().flatten().tolist():
            exchanged[row] = self._exchange(ids[row], chosen[row], may[row], pair=bool(pair[row]))
        hidden = (torch.rand(ids.shape, generator=self._generator) < HIDDEN) & (ids >= len(SPECIAL))
        labels = ids.masked_fill(~(hidden & (rate < MOST_TO_GUESS)[:, None]), -100)
        inputs = {**batch, "input_ids": exchanged.masked_fill(hidden, self._mask), "labels": labels}
        return Spoilt(inputs=inputs, exchanged=(exchanged != ids) & ~hidden)

    def _exchange(self, text: Tensor, chosen: Tensor, may: Tensor, *, pair: bool) -> Tensor:
        words = text.tolist()
        places = may.nonzero().flatten().tolist()
        for place in chosen.nonzero().flatten().tolist():
            likes = self._likes.get(words[place], [words[place]])
            if pair and words[place] in self._same:
                continue
            others = [at for at in places if words[at] in likes and words[at] != words[place]]
            if pair and others and self._draw.random() < 0.5:
                other = self._draw.choice(others)
                words[place], words[other] = words[other], words[place]
            else:
                words[place] = self._draw.choice(likes)
        return torch.tensor(words)


class Judge(torch.nn.Module):
    """Two linear heads that say which words were exchanged, and whether any was; thrown away in the end.

    Args:
        width: of the model.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.word, self.text = torch.nn.Linear(width, 1), torch.nn.Linear(width, 1)

    def losses(self, model: BertForMaskedLM, spoilt: Spoilt) -> Tensor:
        """Return the losses of guessing words, of finding exchanged ones and of judging texts, shape ``[3]``."""
        output = model(**spoilt.inputs, output_hidden_states=True)
        last = output.hidden_states[-1]  # [B, T, width]
        seen = spoilt.inputs["input_ids"] >= len(SPECIAL)
        find = binary_cross_entropy_with_logits(self.word(last)[seen].squeeze(-1), spoilt.exchanged[seen].float())
        wrong = spoilt.exchanged.any(1).float()
        judge = binary_cross_entropy_with_logits(self.text(last[:, 0]).squeeze(-1), wrong)
        return torch.stack([output.loss, find, judge])


def held_out_losses(model: BertForMaskedLM, judge: Judge, tokenizer: PreTrainedTokenizerFast, size: int) -> list[float]:
    """Return the three losses on text of a seed that training does not use."""
    texts = [*sentences(HELD_OUT, seed=-1), *pairs(HELD_OUT, seed=-1)]
    stream, spoil = batches(texts, tokenizer, size, seed=1), Spoiler(tokenizer, seed=1)
    model.eval()
    with torch.no_grad():
        each = [judge.losses(model, spoil(next(stream))) for _ in range(len(texts) // size)]
    model.train()
    return torch.stack(each).mean(0).tolist()


def train(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> tuple[BertForMaskedLM, list[float]]:
    """Pretrain and return the model and its held-out losses."""
    torch.manual_seed(options.seed)
    model = make_model(options.layers, options.width, options.heads).train()
    judge = Judge(options.width)
    texts = [*sentences(options.texts // 2, seed=options.seed), *pairs(options.texts, seed=options.seed)]
    stream, spoil = batches(texts, tokenizer, options.batch, options.seed), Spoiler(tokenizer, options.seed)
    weights = [*model.parameters(), *judge.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=options.lr, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, options.steps // 20, options.steps)
    began, recent = time.monotonic(), []
    for step in range(1, options.steps + 1):
        losses = judge.losses(model, spoil(next(stream)))
        (losses * torch.tensor(WEIGHTS)).sum().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(losses.detach())
        if step % 100 == 0:
            guess, find, text = torch.stack(recent).mean(0).tolist()
            took = time.monotonic() - began
            print(f"step {step}  guess {guess:.3f}  find {find:.3f}  judge {text:.3f}  {took:.0f} s", flush=True)
            recent = []
    return model, held_out_losses(model, judge, tokenizer, options.batch)


def save(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, out: Path, loss: list[float], command: str
) -> None:
    """Write weights (float16), configuration, tokenizer and card."""
    count = sum(parameter.numel() for parameter in model.bert.parameters())
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone, and a package's data is for everybody
    config = model.config
    card = f"""# tiny: a BERT pretrained on evenkeel's embedded grammar

{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads, \
feed-forward {config.intermediate_size}, {POSITIONS} positions, {config.vocab_size} tokens;
{count:,} encoder weights, stored as float16.
Load it with `dtype=torch.float32`. The pooler and the classifier are not in it: they start from the run's own seed.

- Made by: `{command}`
- Text: `evenkeel.tasks.grammar.sentences` and `.pairs` (unlabelled); no text of a validation or test part.
- Held-out losses: {loss[0]:.3f} nats per hidden word, {loss[1]:.3f} for finding exchanged words, {loss[2]:.3f} for \
judging texts.
- Versions: Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, \
tokenizers {tokenizers.__version__}; {platform.machine()} CPU.
- Made for studies of fine-tuning stability. It knows {len(VOCABULARY)} words and nothing about the world.
"""
    (out / "card.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Parse the command line, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"steps": 5000, "batch": 32, "layers": 6, "width": 128, "heads": 4, "texts": 60000, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate, default 1e-3")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write, default the package's own")
    options = parser.parse_args()
    tokenizer = make_tokenizer()
    model, loss = train(options, tokenizer)
    changed = [name for name, value in vars(options).items() if name != "out" and value != parser.get_default(name)]
    given = [f"--{name} {getattr(options, name)}" for name in changed]
    command = " ".join(["python scripts/pretrain_tiny.py", *given])
    save(model, tokenizer, options.out, loss, command)
    print(f"held-out losses {loss[0]:.3f} {loss[1]:.3f} {loss[2]:.3f}; written to {options.out}")


if __name__ == "__main__":
    main()
