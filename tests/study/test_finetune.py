from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from tests.study._small import MakePlan, rows
from transformers import TrainerCallback

import evenkeel.study._finetune as module
from evenkeel.errors import PlanError, StoreError
from evenkeel.study import Plan, finetune_one

# Plain transformers, in a process where evenkeel cannot be imported.
PREDICT = """
import json, sys
class NoEvenkeel:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'evenkeel':
            raise ImportError('evenkeel is not to be had here')
sys.meta_path.insert(0, NoEvenkeel())
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model.eval()(**tokenizer(texts, padding=True, return_tensors='pt')).logits
print(json.dumps({'logits': logits.tolist(), 'labels': model.config.id2label, 'dtype': str(model.dtype)}))
"""


@pytest.fixture
def plan(make_plan: MakePlan) -> Plan:
    return make_plan(methods=["component-clip"], seeds=[7])


@pytest.fixture(scope="module")
def saved(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "deep" / "model"
    finetune_one(make_plan(methods=["component-clip"], seeds=[7]), out)
    return out


@pytest.mark.slow
def test_plain_transformers_loads_it_and_predicts_the_same(saved: Path) -> None:
    texts = json.dumps([text for text, _ in rows(24)])
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(saved), texts], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    stored = pyarrow.parquet.read_table(saved / "predictions.parquet")["logits"].to_pylist()
    assert found["logits"] == [pytest.approx(logits, abs=1e-5) for logits in stored]
    assert found["labels"] == {"0": "0", "1": "1"}
    assert found["dtype"] == "torch.float32"


def test_the_folder_holds_the_model_and_no_pickle(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "metrics.json",
        "model.safetensors",
        "predictions.parquet",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]  # no scratch is left beside it


def test_the_metrics_say_what_was_done(saved: Path) -> None:
    metrics = json.loads((saved / "metrics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert metrics["spec"]["method"] == "component-clip"
    assert metrics["spec"]["seed"] == 7
    assert metrics["diverged"] is False
    assert metrics["scores"] == metrics["accuracy"]


@pytest.mark.parametrize("name", ["relative", "."])
def test_an_empty_folder_gives_way(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    finetune_one(plan, Path(name))
    assert (empty / name / "model.safetensors").is_file()


def test_a_model_that_diverged_is_not_kept(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(methods=["full"], seeds=[1], training={"learning_rate": 1e30})
    assert finetune_one(plan, tmp_path / "out")["diverged"] is True
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.json", "predictions.parquet"]


class Interrupting(TrainerCallback):
    def on_step_end(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


def test_an_interruption_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune_one(plan, tmp_path / "out", callbacks=[Interrupting()])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "execute", lambda *_, **__: pytest.fail("training began"))


@pytest.mark.usefixtures("no_training")
def test_what_is_there_is_not_overwritten(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(StoreError, match="exists and is not empty; choose a new folder with --out"):
            finetune_one(plan, out)
    with pytest.raises(
        StoreError, match=r"notes.txt/below' cannot be written \(.*\); choose another folder with --out"
    ):
        finetune_one(plan, tmp_path / "notes.txt" / "below")


@pytest.mark.usefixtures("no_training")
def test_one_model_comes_from_one_run(make_plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match="the plan has 4 runs, and one model is to be kept; name one task, method and seed"
    ):
        finetune_one(make_plan(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mount_point_is_refused_before_training(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda _: True)
    plan = Plan.checked({"tasks": ["rte"], "seeds": [1]}, where="the test")
    with pytest.raises(StoreError, match="is a mount point; choose a folder inside it"):
        finetune_one(plan, tmp_path / "out")
