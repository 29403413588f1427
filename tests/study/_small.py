"""A study small enough for tests: a BERT of two blocks, a few dozen sentences, an engine in this process."""

from __future__ import annotations

import csv
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

from evenkeel.study import Plan, Resources, RunRecord, StudyFolder
from evenkeel.study.engines import Engine, Job, Report, report_of, work

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
NOUNS = ("film", "book", "play", "song")
MIDDLES = ("was", "is", "was very", "is quite")
WORDS = (*SPECIAL.values(), "the", "was", "is", "very", "quite", *NOUNS, "good", "bad")
POSITIONS = 16

Row = tuple[str, str]


def save_model(folder: Path, *, layers: int = 2) -> Path:
    """Save a BERT that was never pretrained, and a tokenizer of whole words."""
    set_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,  # at so narrow a width the usual 0.02 would make all texts look alike
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **SPECIAL).save_pretrained(folder)
    return folder


def rows(count: int) -> list[Row]:
    """Return sentences and labels: good is 1, bad is 0."""
    kinds = itertools.cycle(itertools.product(NOUNS, MIDDLES, (("bad", "0"), ("good", "1"))))
    return [(f"the {noun} {middle} {word}", label) for noun, middle, (word, label) in itertools.islice(kinds, count)]


def write_csv(path: Path, table: Sequence[Sequence[str]], *, header: Sequence[str] = ("sentence", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *table])
    return path


def save_data(folder: Path) -> Path:
    write_csv(folder / "train.csv", rows(32))
    write_csv(folder / "validation.csv", rows(24))
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gc.collect()
    gc.freeze()  # every Trainer collects garbage when it starts; looking through all of torch each time takes a second
    return save_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_data(tmp_path_factory.mktemp("data"))


MakePlan = Callable[..., Plan]


@pytest.fixture(scope="session")
def make_plan(small_model: Path, small_data: Path) -> MakePlan:
    """Make the small plan, with some of its fields or of its training replaced."""

    def make(*, training: dict[str, Any] | None = None, **changes: Any) -> Plan:
        files = {"train": small_data / "train.csv", "validation": small_data / "validation.csv"}
        content = {
            "tasks": [{"name": "small", **files}],
            "models": [str(small_model)],
            "methods": ["full", "component-clip"],
            "seeds": [1, 2],
            "training": {"learning_rate": 5e-3, "epochs": 2.0, "batch_size": 8, "record_every": 2, **(training or {})},
        }
        return Plan.checked({**content, **changes}, where="the test")

    return make


class InlineEngine(Engine):
    """Executes jobs in this process, one after the other, and remembers which."""

    def __init__(self, *, workers: int | None = None, resources: Resources | None = None) -> None:
        self.workers, self.resources = workers, resources
        self.ran: list[Job] = []
        self.closed = False

    def run(self, jobs: Sequence[Job]) -> Iterator[Report]:
        self.closed = self.stopping = False
        try:
            for job in jobs:
                if self.stopping:
                    return
                self.ran.append(job)
                yield Report(job=job, event="started")
                yield report_of(job, work(job, stopping=lambda: self.stopping))
        finally:
            self.closed = True


def standing(run: RunRecord) -> str:
    """Return a run's status; a score is a score here, since whether so small a model learns is chance."""
    return "done" if run.status == "failed" else run.status


def timeless(run: RunRecord) -> dict[str, Any]:
    """Return a run's outcome without what it took, and without the commit: somebody may work in the checkout."""
    taken = ("wall_seconds", "cpu_seconds", "peak_memory", "provenance")
    made_with = {key: value for key, value in run.outcome["provenance"].items() if key not in ("commit", "dirty")}
    return {key: value for key, value in run.outcome.items() if key not in taken} | {"provenance": made_with}


def same_results(one: StudyFolder, other: StudyFolder, ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> bool:
    """Compare two studies bit for bit: outcomes and tables."""
    return [timeless(run) for run in ours] == [timeless(run) for run in theirs] and all(
        (table := one.read_run(run.id, name)) is not None and table.equals(other.read_run(run.id, name))
        for run in ours
        for name in ("log", "telemetry", "predictions")
    )
