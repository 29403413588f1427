"""What a study does in an hour beside a shell loop around a training script, on a CPU, and what each factor brings.

    python benchmarks/study.py factors --task rte --data DIR --model DIR [--steps 24] [--repeat 3]
    python benchmarks/study.py runs    --task rte --data DIR --model DIR [--examples 512] [--runs 4]

``factors``: training steps per second over all processes, batch 16. The first row is what everybody does: one process
at a time, with all cores, float32, every text padded to 128 tokens. Each row below changes one thing more, in the order
in which a user would. Every way has processes of its own, which begin to be timed together; ways take turns round by
round, so that whatever else the machine does befalls all of them. A ratio is the median over the rounds of (this way /
the first way in the same round), with the quartiles in brackets. bf16 is left out where the CPU only imitates it,
unless ``--imitate-bf16`` asks for it: it is then many times slower than float32.

``runs``: whole runs with evaluation, as runs per hour: a new process for every seed that runs a Trainer script (data
read and tokenised again each time), and ``evenkeel study`` with the same task, model, recipe and seeds. Scores stand
beside: means over seeds, and how far they lie apart in standard errors.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer

from evenkeel.study import Plan, prepare
from evenkeel.study._precision import suitable_precision
from evenkeel.tasks import score

sys.path.insert(0, str(Path(__file__).parent))
from clipping import Timing
from optim import table

CORES = len(os.sched_getaffinity(0))
BATCH, LENGTH, WARM = 16, 128, 4


@dataclass(frozen=True, kw_only=True)
class Way:
    """How runs are trained: what the usual script does, unless said otherwise."""

    padded: bool = True
    grouped: bool = False
    bf16: bool = False
    processes: int = 1


def ways() -> dict[str, Way]:
    """Return the usual way, and one thing more in each that follows."""
    usual = Way()
    packed = replace(usual, processes=CORES)
    dynamic = replace(packed, padded=False)
    grouped = replace(dynamic, grouped=True)
    return {
        f"the usual script: padded to {LENGTH}, float32, all {CORES} cores for one run": usual,
        "+ one single-threaded run per core": packed,
        "+ padded to the longest of the batch": dynamic,
        "+ batches of like lengths": grouped,
        "+ bf16": replace(grouped, bf16=True),
    }


def trainer_of(given: Any, way: Way, folder: str, *, steps: int, callback: Any) -> Trainer:
    """Make a plain Trainer for one way of training."""
    prepared = prepare(Plan.model_validate(given.plan).tasks[0], given.model, LENGTH)
    model = AutoModelForSequenceClassification.from_pretrained(prepared.model.location, num_labels=2)
    padding: dict[str, Any] = {"padding": "max_length", "max_length": LENGTH} if way.padded else {}
    return Trainer(
        model,
        transformers.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            bf16=way.bf16,
            train_sampling_strategy="group_by_length" if way.grouped else "random",
            length_column_name="length",
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=prepared.parts["train"],
        data_collator=DataCollatorWithPadding(prepared.tokenizer, **padding),
        callbacks=[callback],
    )


class Clock(transformers.TrainerCallback):
    """Notes when steps end; all processes begin the first timed one together."""

    def __init__(self, barrier: Any) -> None:
        self.barrier, self.moments = barrier, []

    def on_step_end(self, args: Any, state: Any, *more: Any, **kwargs: Any) -> None:
        """Wait for the others once, and look at the clock."""
        if state.global_step == WARM:
            self.barrier.wait()
        self.moments.append(time.perf_counter())


def work(given: Any, way: Way, steps: int, barrier: Any, answers: Any) -> None:
    """Train in this process, and answer with the mean seconds of a step."""
    torch.set_num_threads(max(1, CORES // way.processes))
    transformers.utils.logging.set_verbosity_error()
    clock = Clock(barrier)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(given, way, folder, steps=WARM + steps, callback=clock)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    timed = clock.moments[WARM - 1 :]
    # The mean and not the median: lengths differ from step to step, and all of them have to be done.
    answers.put(statistics.fmean(after - before for before, after in itertools.pairwise(timed)))


def rate(given: Any, way: Way, steps: int) -> float:
    """Return steps per second over all processes."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(way.processes), context.Queue()
    processes = [context.Process(target=work, args=(given, way, steps, barrier, answers)) for _ in range(way.processes)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=3600) for _ in processes]
    for process in processes:
        process.join()
    return sum(1 / seconds for seconds in found)


def factors(given: Any) -> None:
    """Measure every way in each round, and print the table."""
    chosen = ways()
    if not given.imitate_bf16 and suitable_precision() != "bf16":
        del chosen["+ bf16"]
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for _, (name, way) in itertools.product(range(given.repeat), chosen.items()):
        found[name].append(rate(given, way, given.steps))
        print(f"{name}: {found[name][-1]:.3f} steps/s", file=sys.stderr)
    first = next(iter(found.values()))
    rows = []
    for name, rates in found.items():
        ratios = [mine / theirs for mine, theirs in zip(rates, first, strict=True)]
        rows.append((name, f"{statistics.median(rates):.3f}", Timing(rates, ratios).row()[1]))
    print(f"{given.plan['tasks'][0]['name']}, {given.repeat} rounds of {given.steps} steps of {BATCH} examples\n")
    table(("way", "steps a second", "ratio to the first (quartiles)"), rows)


# --- whole runs


def usual_run(given: Any, seed: int) -> float:
    """Do what the usual script does for one seed, in a process of its own, and return the score on validation."""
    from evenkeel.tasks import load_task

    transformers.set_seed(seed)
    data = load_task(Plan.model_validate(given.plan).tasks[0].source())
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    columns = [name for name in ("text", "text_pair") if name in data.train.column_names]

    def encoded(part: Any) -> Any:
        return part.map(
            lambda rows: tokenizer(
                *(rows[name] for name in columns), padding="max_length", truncation=True, max_length=LENGTH
            ),
            batched=True,
        )

    model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=len(data.classes))
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=given.epochs,
            learning_rate=given.lr,
            per_device_train_batch_size=BATCH,
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        validation = encoded(data.validation)
        trainer = Trainer(model, arguments, train_dataset=encoded(data.train))
        trainer.train()
        predicted = trainer.predict(validation).predictions.argmax(1)
    return score(data.task.metric, list(data.validation["label"]), predicted.tolist())


def usual_runs(given: Any) -> tuple[float, list[float]]:
    """Return the seconds of all runs, a new process for each, and their scores."""
    began, scores = time.perf_counter(), []
    for seed in range(1, given.runs + 1):
        command = [sys.executable, __file__, "usual", *sys.argv[2:], "--seed", str(seed)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603  ourselves
        scores.append(float(said.splitlines()[-1]))
        print(f"usual, seed {seed}: {scores[-1]:.3f}", file=sys.stderr)
    return time.perf_counter() - began, scores


def our_runs(given: Any, precision: str) -> tuple[float, list[float]]:
    """Return the seconds of the same runs as a study, with everything that the command does, and their scores."""
    from evenkeel.study import open_study

    options = ["--task", given.task, "--model", given.model, "--methods", "full", "--seeds", str(given.runs)]
    options += ["--lr", str(given.lr), "--epochs", str(given.epochs), "--precision", precision]
    options += ["--max-train-samples", str(given.examples)] if given.examples else []
    options += ["--data", given.data] if given.data else []
    with tempfile.TemporaryDirectory() as folder:
        out, began = str(Path(folder) / "study"), time.perf_counter()
        command = [sys.executable, "-m", "evenkeel", "study", *options, "--out", out]
        subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603  ourselves
        seconds = time.perf_counter() - began
        _, records, _ = open_study(Path(out))
    return seconds, [record.outcome["scores"]["validation"] for record in records]


def runs(given: Any) -> None:
    """Do whole runs both ways, and print runs per hour and scores."""
    ways = {
        "a process per seed, the usual script": usual_runs(given),
        "evenkeel study, float32": our_runs(given, "float32"),
    }
    if given.imitate_bf16 or suitable_precision() == "bf16":
        ways["evenkeel study, bf16"] = our_runs(given, "bf16")
    first, usual = next(iter(ways.values()))
    rows = []
    for name, (seconds, scores) in ways.items():
        rows.append(
            (
                name,
                f"{3600 * given.runs / seconds:.0f}",
                f"{first / seconds:.1f}",
                f"{statistics.fmean(scores):.3f} +- {statistics.stdev(scores):.3f}",
                f"{apart(scores, usual):.1f}",
            )
        )
    table(("way", "runs an hour", "ratio", "score (mean +- std, n-1)", "apart from the first, standard errors"), rows)
    print(f"{given.runs} runs of {given.task}, {given.epochs} epochs, {given.examples or 'all'} examples\n")


def apart(scores: Sequence[float], others: Sequence[float]) -> float:
    """Return how far two means lie apart, in standard errors of their difference."""
    variances = [statistics.variance(some) / len(some) for some in (scores, others)]
    spread = sum(variances) ** 0.5
    return abs(statistics.fmean(scores) - statistics.fmean(others)) / spread if spread else 0.0


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["factors", "runs", "usual"])
    parser.add_argument("--task", default="rte")
    parser.add_argument("--data", default=None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--examples", type=int, default=0, help="0 for all")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--imitate-bf16", action="store_true", help="measure bf16 also where the CPU has none")
    given = parser.parse_args()
    task = {"name": given.task, "data": given.data, "max_train_samples": given.examples or None}
    given.plan = {"tasks": [task], "models": [given.model], "seeds": [1]}
    if given.what == "usual":
        print(usual_run(given, given.seed))
    else:
        {"factors": factors, "runs": runs}[given.what](given)


if __name__ == "__main__":
    main()
