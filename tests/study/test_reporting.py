from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path

import pytest
from tests.study._small import MakePlan
from tests.study.test_plan import SPEC

from evenkeel.study import LOG_FOLDER, Measures, Study, StudyFolder, execute
from evenkeel.study._reporting import reporting, run_name

WRITER = """
import json, pathlib
class SummaryWriter:
    def __init__(self, log_dir):
        self.path = pathlib.Path(log_dir)
        self.path.mkdir(parents=True)
    def add_scalar(self, name, value, step):
        with (self.path / "scalars").open("a") as file:
            file.write(f"{step} {name} {value}\\n")
    def add_text(self, *args): pass
    def add_hparams(self, *args, **kwargs): pass
    def flush(self): pass
    def close(self): pass
"""


def test_names_are_fit_for_files_and_tell_runs_apart() -> None:
    spec = SPEC.model_copy(update={"task": "grammar/x", "method": "component-clip:max_norm={'*': 1}"})
    assert run_name(spec) == f"grammar_x-component-clip_max_norm={{'*': 1}}-1-{spec.id}".translate(
        str.maketrans(dict.fromkeys("{'*: }", "_"))
    )
    assert run_name(spec) != run_name(spec.model_copy(update={"seed": 2}))


def test_a_runs_log_goes_where_it_is_asked_for(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorboardX").mkdir()
    (tmp_path / "tensorboardX" / "__init__.py").write_text(WRITER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setenv(LOG_FOLDER, str(tmp_path / "logs"))
    importlib.invalidate_caches()
    measures = Measures(report_to=("tensorboard",))
    for job in Study(make_plan(methods=["full"], seeds=2), StudyFolder(tmp_path / "out")).jobs():
        execute(job.spec, job.task, model=job.model, measures=measures)
        written = (tmp_path / "logs" / run_name(job.spec) / "scalars").read_text(encoding="utf-8")
        assert "train/loss" in written
        assert "train/learning_rate" in written
    assert len(list((tmp_path / "logs").iterdir())) == 2
    assert os.environ[LOG_FOLDER] == str(tmp_path / "logs")


def test_a_place_that_stays_open_is_closed_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = types.SimpleNamespace(run=object())
    wandb.finish = lambda: setattr(wandb, "run", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with reporting(SPEC, []):
        pass
    assert wandb.run is not None  # somebody else's
    with reporting(SPEC, ["wandb"]):
        pass
    assert wandb.run is None
