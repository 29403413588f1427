"""What people get wrong: one clear message, exit code 2, and nothing was trained or written."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.study._small import rows, save_data, write_csv

import evenkeel.cli._drive as drive
import evenkeel.study._finetune as finetune
from evenkeel.study import Resources, Store
from evenkeel.study.engines import Engine, Job, LocalEngine, Report


class NoEngine(Engine):
    def __init__(self, *, workers: int | None = None, resources: Resources) -> None:
        LocalEngine(workers=workers, resources=resources)  # which refuses what it must

    def run(self, jobs: Any) -> Iterator[Report]:
        raise AssertionError(f"training began: {jobs}")


@pytest.fixture(autouse=True)
def _nothing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "LocalEngine", NoEngine)
    monkeypatch.setattr(finetune, "execute", lambda *_, **__: pytest.fail("training began"))
    monkeypatch.delenv("EVENKEEL_GLUE_DIR", raising=False)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return save_data(tmp_path)


def usual(here: Path, model: Path) -> list[object]:
    files = ["--train", here / "train.csv", "--validation", here / "validation.csv"]
    return [*files, "--model", model, "--methods", "full", "--out", here / "out"]


# --- the command line. A later option overrides an earlier one.

OPTIONS: list[tuple[list[str], str]] = [
    (["--task", "mprc"], r"unknown task 'mprc': did you mean 'mrpc'\? Known: .*--train, --validation"),
    (["--task", "rte"], "rte could not be loaded from the hub .*without a network.*--data .*EVENKEEL_GLUE_DIR"),
    (["--task", "rte", "--data", "{here}/empty"], "holds no rte: there should be '{here}/empty/rte/train'"),
    (["--task", "rte", "--data", "{here}"], "rte, train: unknown column 'sentence1': did you mean 'sentence'"),
    (["--task", "rte", "--data", "{here}/none"], "there is no folder '{here}/none' to read rte from; give the folder"),
]
OVER_OWN_FILES: list[tuple[list[str], str]] = [
    (["--model", "tinny"], "unknown model 'tinny': did you mean 'tiny'"),
    (
        ["--model", "some-org/some-model"],
        "no folder here, and could not be had from the hub .*without a network.*'tiny'",
    ),
    (["--model", "./none"], "there is no folder './none'; give an existing folder"),
    (["--model", "{here}"], "the folder '{here}' holds no config.json, so it is no pretrained model; give"),
    (["--methods", "component-clpi"], r"unknown method 'component-clpi': did you mean 'component-clip'\? Known: "),
    (
        ["--methods", "component-clip:max_nrom=1"],
        "unknown option of component-clip 'max_nrom': did you mean 'max_norm'",
    ),
    (["--methods", "full:x=1"], "unknown option of full 'x'"),
    (["--methods", "full+component-clip"], "full and component-clip cannot be mixed: each decides how .*keep one"),
    (["--text", "sentense"], "unknown column 'sentense': did you mean 'sentence'"),
    (["--text", "sentence,other"], "unknown column 'other'"),
    (["--label", "labels"], "unknown column 'labels': did you mean 'label'"),
    (["--metric", "acuracy"], r"unknown metric 'acuracy': did you mean 'accuracy'\? Known: accuracy, exact_match, f1"),
    (["--max-train-samples", "0"], r"max_train_samples: .*greater than 0 \(given: 0\)"),
    (["--lr", "0"], r"the command line: training.learning_rate: input should be greater than 0 \(given: 0.0\)"),
    (["--lr", "-1"], r"learning_rate: .*greater than 0 \(given: -1.0\)"),
    (["--lr", "nan"], r"learning_rate: .*\(given: NaN\)"),
    (["--lr", "inf"], r"learning_rate: .*finite"),
    (["--epochs", "0"], "training.epochs: .*greater than 0"),
    (["--batch-size", "0"], "training.batch_size: .*greater than 0"),
    (["--max-length", "3"], r"training.max_length: .*greater than or equal to 4 \(given: 3\)"),
    (["--warmup", "1"], "training.warmup: .*less than 1"),
    (["--precision", "fp16"], "fp16 needs a GPU, and there is none here; use bf16, or float32"),
    (
        ["--methods", "component-clip:max_norm={{qeury: 1, '*': 1}}"],
        "max_norm names 'qeury', which is the role or path of no",
    ),
    (["--schedule", "square"], "training.schedule: .*'linear', 'cosine' or 'constant'"),
    (["--precision", "int4"], "training.precision: .*'float32', 'bf16', 'fp16' or 'auto'"),
    (["--out", "{here}/train.csv/out"], r"'{here}/train.csv/out' cannot be written \(.*\); choose another"),
    (["--out", "/proc/evenkeel"], r"'/proc/evenkeel' cannot be written \(.*\); choose another"),
    (["--out", "{here}"], "'{here}' .*; choose a new .*--out"),
]
STUDY_ALONE: list[tuple[list[str], str]] = [
    (["--seeds", "abc"], "--seeds 'abc' is neither a number of seeds nor a list of seeds; write 20 or 1,2,5"),
    (["--seeds", "1,,2"], "neither a number of seeds nor a list"),
    (["--seeds", "0"], r"seeds: a single number counts seeds, from 1 .*\(given: 0\)"),
    (["--seeds", "1,2,1"], "seeds: 1 stands there twice"),
    (["--seeds", "1,-2"], r"seeds.1: .*greater than or equal to 0 \(given: -2\)"),
    (["--methods", "full,full"], "methods: 'full' stands there twice"),
    (["--workers", "0"], "workers must be positive, but got 0; leave it out for one a core"),
    (["--engine", "rya"], "unknown engine 'rya': did you mean 'ray'\\? Known: local, ray"),
    (["--address", "auto"], "--address auto names a Ray cluster, and the engine is local; add --engine ray"),
    (["--engine", "ray", "--workers", "0"], "workers must be positive, but got 0; leave it out to fill the cluster"),
]
FINETUNE_ALONE: list[tuple[list[str], str]] = [
    (["--methods", "full,component-clip"], r"finetune trains one model on one task, .*join methods with \+ .*study"),
    (["--task", "rte,cola"], "finetune trains one model on one task"),
    (["--seed", "-1"], r"seeds.0: .*greater than or equal to 0 \(given: -1\)"),
]
CASES = [
    *[(command, False, *case) for command in ("study", "finetune") for case in OPTIONS],
    *[(command, True, *case) for command in ("study", "finetune") for case in OVER_OWN_FILES],
    *[("study", True, *case) for case in STUDY_ALONE],
    *[("finetune", True, *case) for case in FINETUNE_ALONE],
]


@pytest.mark.parametrize(
    ("command", "own", "options", "said"), CASES, ids=lambda value: "_".join(value) if isinstance(value, list) else None
)
def test_options_that_cannot_be(
    evenkeel: Callable[..., Any],
    here: Path,
    small_model: Path,
    command: str,
    own: bool,
    options: list[str],
    said: str,
) -> None:
    base = usual(here, small_model) if own else ["--out", here / "out"]
    refused(
        evenkeel(command, *base, *(option.format(here=here) for option in options)), said.replace("{here}", str(here))
    )
    assert not (here / "out").exists()


def refused(found: Any, said: str) -> None:
    assert found.code == 2, found
    message = " ".join(found.err.split())
    assert message.startswith("error: ")
    assert re.search(said, message), message
    assert "Traceback" not in found.err


@pytest.mark.parametrize("option", ["--train", "--validation"])
@pytest.mark.parametrize("command", ["study", "finetune"])
def test_one_file_without_the_other(evenkeel: Callable[..., Any], here: Path, command: str, option: str) -> None:
    found = evenkeel(command, option, here / "train.csv", "--out", here / "out")
    refused(found, "only the (training|validation) file was given; give the (training|validation) file too")


# --- people's files

FILES: list[tuple[str, bytes | None, str]] = [
    ("train.csv", None, "there is no file '.*train.csv'; check the name"),
    ("train.csv", b"", "'.*train.csv' is empty; it needs a header row and examples"),
    ("train.csv", b"sentence,label\n", "has a header and no examples"),
    ("validation.csv", b"sentence,label\n", "validation.csv' has a header and no examples"),
    (
        "train.csv",
        b"sentence,label\ngood \xff,1\nbad,0\n",
        "not UTF-8: line 2 holds the byte 0xff; save the file as UTF-8",
    ),
    ("train.csv", b"words,label\ngood,1\nbad,0\n", "has the columns words, label; name the text column .*--text"),
    ("train.csv", b"sentence,score\ngood,1\nbad,0\n", "unknown column 'label'.*Known: score, sentence"),
    ("validation.csv", b"sentence,label\ngood,1\nso,2\n", "the label '2', which no training example has .*check both"),
    (
        "train.csv",
        b"sentence,label\ngood,1\nbad,1\n",
        "all examples of the train part have the label '1', so there is no",
    ),
    ("validation.csv", b"sentence,label\ngood,1\nbad,1\n", "all examples of the validation part have the label '1'"),
    ("train.csv", b"sentence,label\ngood,1\n ,0\n", "example 2 has no text in column 'sentence'; fill it or drop it"),
    ("train.csv", b"sentence,label\ngood,1\nbad,\n", "example 2 has no label in column 'label'; fill it or drop it"),
    (
        "train.csv",
        "sentence,label\ngood,1\n\u200b,0\n".encode(),
        "'.u200b' of example 2 tokenises to nothing; correct it",
    ),
    ("train.csv", b"sentence,label\ngood,1.5\nbad,0.25\n", "look like no classes; .*for a regression choose"),
]


@pytest.mark.parametrize(("name", "content", "said"), FILES)
def test_files_that_cannot_be_learnt_from(
    evenkeel: Callable[..., Any], here: Path, small_model: Path, name: str, content: bytes | None, said: str
) -> None:
    (here / name).unlink()
    if content is not None:
        (here / name).write_bytes(content)
    refused(evenkeel("study", *usual(here, small_model)), said)
    assert not (here / "out").exists()


def test_the_f1_of_three_classes(evenkeel: Callable[..., Any], here: Path, small_model: Path) -> None:
    for part in ("train", "validation"):
        write_csv(here / f"{part}.csv", [*rows(4), ("the book", "2")])
    refused(evenkeel("study", *usual(here, small_model), "--metric", "f1"), "f1 is for two classes, .* 3; use macro_f1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "holds no config.json, so it is no pretrained model; give a folder that save_pretrained wrote"),
        (
            "model.safetensors",
            r"holds no \*.safetensors, the only weights that are loaded .*save it with save_pretrained",
        ),
        ("tokenizer.json", "the model in '.*model' cannot be loaded|knows no words"),
    ],
)
def test_folders_without_a_whole_model(
    evenkeel: Callable[..., Any], here: Path, small_model: Path, name: str, said: str
) -> None:
    model = Path(shutil.copytree(small_model, here / "model"))
    (model / name).unlink()
    refused(evenkeel("study", *usual(here, model)), said)


# --- plans


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("tasks: [rte]\nsedes: 3\n", r"the plan '.*study.yaml': unknown key 'sedes': did you mean 'seeds'\?"),
        ("tasks: [rte]\nseeds: 3\ntraining: {lr: 1e-3}\n", "unknown key 'lr'.*Known: batch_size, .*learning_rate"),
        ("- rte\n", "must be a mapping with the keys tasks, models, methods, seeds, "),
        ("tasks: [rte]\nseeds: many\n", r"seeds: .*\(given: 'many'\)"),
        ("tasks: [rte]\n", "seeds: field required"),
        ("tasks: [rte\n", "cannot be read: .*expected"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_plans_that_cannot_be(evenkeel: Callable[..., Any], here: Path, plan: str | None, said: str) -> None:
    if plan is not None:
        (here / "study.yaml").write_text(plan, encoding="utf-8")
    refused(evenkeel("study", here / "study.yaml", "--out", here / "out"), said)
    assert not (here / "out").exists()


def test_a_plan_and_options_beside_it(evenkeel: Callable[..., Any], here: Path) -> None:
    (here / "study.yaml").write_text("tasks: [rte]\nseeds: 3\n", encoding="utf-8")
    found = evenkeel(
        "study", here / "study.yaml", "--out", here / "out", "--lr", "2e-5", "--seeds", "5", "--workers", "1"
    )
    refused(
        found, "both a plan and (--seeds, --learning-rate|--learning-rate, --seeds) were given; put .*'.*study.yaml'"
    )


def test_no_task_at_all(evenkeel: Callable[..., Any], here: Path) -> None:
    refused(evenkeel("study", "--out", here / "out"), "no task was given; name one with --task, or give your own files")


# --- folders of results


@pytest.fixture
def begun(evenkeel: Callable[..., Any], here: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A study that was interrupted before its first run."""

    class Interrupted(NoEngine):
        def run(self, jobs: list[Job]) -> Iterator[Report]:
            raise KeyboardInterrupt

    arguments = usual(here, small_model)
    with monkeypatch.context() as patch:
        patch.setattr(drive, "LocalEngine", Interrupted)
        found = evenkeel("study", *arguments)
    assert found.code == 130
    assert "interrupted: what was finished is kept; the same command goes on" in found.err
    return arguments


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lr", "1e-3"], "another study: its training differ .*learning_rate 2e-05 there, 0.001 now.*--out"),
        (["--task", "other"], "another study: its tasks differ .*there, other now"),
        (["--label", "label"], "another study: its tasks differ .*other files or columns"),
        (["--model", "tiny"], "another study: its models differ .*there, tiny now"),
        (
            ["--methods", "component-clip"],
            r"a study with more methods \(full\); methods can be added and not taken away",
        ),
        (["--seeds", "2"], r"a study with more seeds \(3, 4, 5\)"),
    ],
)
def test_the_folder_holds_another_study(
    evenkeel: Callable[..., Any], begun: list[object], options: list[str], said: str
) -> None:
    refused(evenkeel("study", *begun, *options), said)


def test_a_model_does_not_go_into_a_study(evenkeel: Callable[..., Any], begun: list[object]) -> None:
    refused(evenkeel("finetune", *begun), "exists and is not empty; choose a new folder with --out")


@pytest.mark.parametrize("command", ["study", "status", "report"])
def test_a_damaged_store(evenkeel: Callable[..., Any], begun: list[object], here: Path, command: str) -> None:
    store = here / "out" / "study.sqlite"
    store.write_bytes(store.read_bytes()[:5000])
    refused(
        evenkeel(command, *(begun if command == "study" else [here / "out"])), "store '.*' cannot be used .*malformed"
    )


@pytest.mark.parametrize("command", ["study", "status", "report"])
def test_a_store_of_a_newer_version(
    evenkeel: Callable[..., Any], begun: list[object], here: Path, command: str
) -> None:
    with closing(sqlite3.connect(here / "out" / "study.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")
    found = evenkeel(command, *(begun if command == "study" else [here / "out"]))
    refused(found, "is of schema version 99, and this evenkeel reads up to version 3; use the evenkeel that wrote it")


def test_a_store_without_a_plan_is_begun_anew(
    evenkeel: Callable[..., Any], here: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "out").mkdir()
    Store(here / "out" / "study.sqlite").close()  # as a driver leaves it that was killed at once
    with pytest.raises(AssertionError, match="training began"):
        evenkeel("study", *usual(here, small_model))


@pytest.mark.parametrize("command", ["status", "report"])
def test_no_study_to_look_at(evenkeel: Callable[..., Any], here: Path, command: str) -> None:
    refused(evenkeel(command, here), "holds no study; give the folder that was named by --out")
    refused(evenkeel(command, here / "none"), "holds no study")


def test_a_report_of_nothing(evenkeel: Callable[..., Any], begun: list[object], here: Path) -> None:
    refused(evenkeel("report", here / "out"), "has no finished run to report on .*; run it")


# --- through a real process


@pytest.mark.slow
def test_a_real_process_says_it_and_exits_with_2(here: Path) -> None:
    program = Path(sys.executable).with_name("evenkeel")
    environment = {name: value for name, value in os.environ.items() if name != "EVENKEEL_GLUE_DIR"}
    done = subprocess.run(
        [program, "study", "--task", "mprc", "--out", str(here / "out")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown task 'mprc': did you mean 'mrpc'? Known: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (here / "out").exists()
