"""Pretrain ``tiny``, the embedded BERT, by masked LM on the embedded grammar, and save it as package data.

    OMP_NUM_THREADS=1 python scripts/pretrain_tiny.py

Text, masks, initial weights and order are fixed by seeds: the same versions on the same kind of machine repeat the
model. Half of the text is single sentences, half unlabelled pairs with segment ids; none of it occurs in a validation
or test part of an embedded task.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Iterator, Sequence
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
HIDDEN, EXCHANGED = 0.1, 0.1  # shares of the words
FIND = 5.0  # weight of finding against guessing: there are many words to look at and little to say of each
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
        hidden_dropout_prob=0.0,  # the text is endless, and dropout delays comparing one sentence with the other
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config)
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


class Spoiler:
    """Hides words for the model to guess, and exchanges others for it to find.

    Of the words to guess half become ``[MASK]`` and half another word of their class: one of the same text if there is
    one and chance will have it so, or else any. So the model must judge the words that it sees, against each other and
    against the other sentence of a pair, as it will have to when it is fine-tuned.

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

    def __call__(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the batch with ``labels`` (the words to guess), and which tokens were exchanged, shape ``[B, T]``."""
        ids = batch["input_ids"]  # [B, T]
        fate = torch.rand(ids.shape, generator=self._generator).masked_fill(ids < len(SPECIAL), 1.0)
        spoilt = ids.clone()
        spoilt[fate < HIDDEN] = self._mask
        for row, column in ((fate >= HIDDEN) & (fate < HIDDEN + EXCHANGED)).nonzero().tolist():
            spoilt[row, column] = self._another(int(ids[row, column]), ids[row].tolist())
        labels = torch.where(fate < HIDDEN + EXCHANGED, ids, -100)
        return {**batch, "input_ids": spoilt, "labels": labels}, (spoilt != ids) & (spoilt != self._mask)

    def _another(self, word: int, text: list[int]) -> int:
        likes = self._likes.get(word, [word])
        near = sorted({other for other in text if other in likes and other != word})
        return self._draw.choice(near if near and self._draw.random() < 0.5 else likes)


def losses(
    model: BertForMaskedLM, finder: torch.nn.Linear, batch: dict[str, Tensor], exchanged: Tensor
) -> list[Tensor]:
    """Return the loss of guessing words and that of finding exchanged ones, in nats per word."""
    output = model(**batch, output_hidden_states=True)
    seen = batch["input_ids"] >= len(SPECIAL)
    found = finder(output.hidden_states[-1]).squeeze(-1)
    return [output.loss, binary_cross_entropy_with_logits(found[seen], exchanged[seen].float())]


def held_out_losses(
    model: BertForMaskedLM, finder: torch.nn.Linear, tokenizer: PreTrainedTokenizerFast, size: int
) -> list[float]:
    """Return both losses on text of a seed that training does not use."""
    texts = [*sentences(HELD_OUT, seed=-1), *pairs(HELD_OUT, seed=-1)]
    stream, spoil = batches(texts, tokenizer, size, seed=1), Spoiler(tokenizer, seed=1)
    model.eval()
    with torch.no_grad():
        each = [losses(model, finder, *spoil(next(stream))) for _ in range(len(texts) // size)]
    model.train()
    return torch.tensor(each).mean(0).tolist()


def train(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> tuple[BertForMaskedLM, list[float]]:
    """Pretrain and return the model and its held-out losses."""
    torch.manual_seed(options.seed)
    model = make_model(options.layers, options.width, options.heads).train()
    finder = torch.nn.Linear(options.width, 1)  # thrown away in the end
    texts = [*sentences(options.texts // 2, seed=options.seed), *pairs(options.texts, seed=options.seed)]
    stream, spoil = batches(texts, tokenizer, options.batch, options.seed), Spoiler(tokenizer, options.seed)
    weights = [*model.parameters(), *finder.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=options.lr, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, options.steps // 20, options.steps)
    began, recent = time.monotonic(), []
    for step in range(1, options.steps + 1):
        guess, find = losses(model, finder, *spoil(next(stream)))
        (guess + FIND * find).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append([float(guess.detach()), float(find.detach())])
        if step % 100 == 0:
            guessed, found = torch.tensor(recent).mean(0).tolist()
            print(f"step {step}  guess {guessed:.3f}  find {found:.3f}  {time.monotonic() - began:.0f} s", flush=True)
            recent = []
    return model, held_out_losses(model, finder, tokenizer, options.batch)


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
- Held-out masked-LM loss: {loss[0]:.3f} nats per guessed word; loss of finding exchanged words {loss[1]:.3f} per word.
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
    print(f"held-out losses {loss[0]:.3f}, {loss[1]:.3f}; written to {options.out}")


if __name__ == "__main__":
    main()
