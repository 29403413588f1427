"""LoRA in Hugging Face's Trainer, each adapter matrix clipped on its own; the adapters are merged in the end.

Run it: ``python examples/lora_trainer.py``. It needs PEFT: ``pip install 'evenkeel[lora]'``.
"""

from __future__ import annotations

import argparse

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from evenkeel import ClipStatistics
from evenkeel.integrations.transformers import ComponentClip
from evenkeel.models import find_model, load_model, load_tokenizer

TEXTS = ["the cat sleeps", "the cat sleep", "a dog runs", "a dog run", "the birds sing", "the birds sings"] * 8


def main() -> None:
    """Train, and save the merged model."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", default="lora-merged", help="folder of the merged model")
    out = options.parse_args().out

    source = find_model("tiny")
    tokenizer = load_tokenizer(source)
    data = Dataset.from_dict(dict(tokenizer(TEXTS)) | {"labels": [1, 0] * (len(TEXTS) // 2)})
    model = get_peft_model(
        load_model(source, ["no", "yes"], seed=0),
        LoraConfig(r=4, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"]),
    )
    statistics = ClipStatistics()
    trainer = Trainer(
        model,
        TrainingArguments(
            f"{out}-training",
            learning_rate=5e-4,
            num_train_epochs=2,
            max_grad_norm=0,
            logging_steps=2,
            report_to="none",
        ),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[ComponentClip({"head": 0.05, "*": 0.01}, statistics=statistics)],
    )
    trainer.train()
    for name, share in statistics.clipped.items():
        print(f"{share:6.1%} {name}")
    model.merge_and_unload().save_pretrained(out)


if __name__ == "__main__":
    main()
