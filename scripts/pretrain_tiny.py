"""Pretrain ``tiny``, the embedded BERT, by masked LM on the embedded grammar, and save it as package data.

    OMP_NUM_THREADS=1 python scripts/pretrain_tiny.py

Text, masks, initial weights and order are fixed by seeds: the same versions on the same kind of machine repeat the
model. Half of the text is single sentences, half unlabelled pairs with segment ids; none of it occurs in a validation
or test part of an embedded task.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

from evenkeel.tasks.grammar import VOCABULARY, pairs, sentences

OUT = Path(__file__).parents[1] / "src" / "evenkeel" / "models" / "tiny"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
POSITIONS = 64
MASKED = 0.15  # share of words that the model must guess
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
    """Return the model with fresh weights."""
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(VOCABULARY),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
    )
    return BertForMaskedLM(config)


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


def masked(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Hide words as BERT does: of those to guess, 80 % become ``[MASK]``, 10 % another word, 10 % stay."""
    ids = batch["input_ids"]
    chosen = (torch.rand(ids.shape, generator=generator) < MASKED) & (ids >= len(SPECIAL))
    fate = torch.rand(ids.shape, generator=generator)
    other = torch.randint(len(SPECIAL), len(SPECIAL) + len(VOCABULARY), ids.shape, generator=generator)
    hidden = torch.where(chosen & (fate < 0.8), SPECIAL.index("[MASK]"), ids)
    hidden = torch.where(chosen & (fate >= 0.9), other, hidden)
    return {**batch, "input_ids": hidden, "labels": torch.where(chosen, ids, -100)}


def held_out_loss(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, size: int) -> float:
    """Return the masked-LM loss, nats per guessed word, on text of a seed that training does not use."""
    texts = [*sentences(HELD_OUT, seed=-1), *pairs(HELD_OUT, seed=-1)]
    stream, generator = batches(texts, tokenizer, size, seed=-1), torch.Generator().manual_seed(1)
    model.eval()
    total, guessed = 0.0, 0
    with torch.no_grad():
        for _ in range(len(texts) // size):
            batch = masked(next(stream), generator)
            count = int((batch["labels"] >= 0).sum())
            total, guessed = total + float(model(**batch).loss) * count, guessed + count
    model.train()
    return total / guessed


def train(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> tuple[BertForMaskedLM, float]:
    """Pretrain and return the model and its held-out loss."""
    torch.manual_seed(options.seed)
    model = make_model(options.layers, options.width, options.heads).train()
    texts = [*sentences(options.texts, seed=options.seed), *pairs(options.texts, seed=options.seed)]
    stream = batches(texts, tokenizer, options.batch, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, options.steps // 20, options.steps)
    began, recent = time.monotonic(), []
    for step in range(1, options.steps + 1):
        loss = model(**masked(next(stream), generator)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(float(loss.detach()))
        if step % 100 == 0:
            print(f"step {step}  loss {sum(recent) / len(recent):.3f}  {time.monotonic() - began:.0f} s", flush=True)
            recent = []
    return model, held_out_loss(model, tokenizer, options.batch)


def save(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, out: Path, loss: float, command: str) -> None:
    """Write weights (float16), configuration, tokenizer and card."""
    count = sum(parameter.numel() for parameter in model.bert.parameters())
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = model.config
    card = f"""# tiny: a BERT pretrained on evenkeel's embedded grammar

{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads, \
feed-forward {config.intermediate_size}, {POSITIONS} positions, {config.vocab_size} tokens; \
{count:,} encoder weights, stored as float16.
Load it with `dtype=torch.float32`. The pooler and the classifier are not in it: they start from the run's own seed.

- Made by: `{command}`
- Text: `evenkeel.tasks.grammar.sentences` and `.pairs` (unlabelled); no text of a validation or test part.
- Held-out masked-LM loss: {loss:.3f} nats per guessed word.
- Versions: Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, \
tokenizers {tokenizers.__version__}; {platform.machine()} CPU.
- Made for studies of fine-tuning stability. It knows {len(VOCABULARY)} words and nothing about the world.
"""
    (out / "card.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Parse the command line, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"steps": 3000, "batch": 64, "layers": 6, "width": 128, "heads": 4, "texts": 60000, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate, default 1e-3")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write, default the package's own")
    options = parser.parse_args()
    tokenizer = make_tokenizer()
    model, loss = train(options, tokenizer)
    given = [(name, value) for name, value in vars(options).items() if value != parser.get_default(name)]
    options_given = [f"--{name} {value}" for name, value in given if name != "out"]
    command = " ".join(["python scripts/pretrain_tiny.py", *options_given])
    save(model, tokenizer, options.out, loss, command)
    print(f"held-out loss {loss:.3f}; written to {options.out}")


if __name__ == "__main__":
    main()
