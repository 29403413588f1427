"""The real TensorBoard, Weights & Biases and MLflow behind the Trainer's log: what they keep, read from their files.

``make setup`` installs TensorBoard alone; the tests of the others skip where they are not there.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import _models
from tests.integrations._training import BATCH, DATA, by_hand, mean_over_all
from transformers import PrinterCallback, Trainer, TrainingArguments

from evenkeel import components
from evenkeel.integrations.transformers import ComponentClip

Arguments = Callable[..., TrainingArguments]
Series = dict[str, dict[int, float]]  # of each name: the value at each step
pytestmark = pytest.mark.filterwarnings("ignore")  # of the reporters, about themselves
MAX_NORM, STEPS = 0.02, len(DATA) // BATCH


def train(args: TrainingArguments) -> list[dict[str, Any]]:
    """Train with the reporters of ``args``; return the log."""
    trainer = Trainer(
        _models.bert(), args, train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=[ComponentClip(MAX_NORM)]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def expected() -> list[dict[str, float]]:
    """What must arrive for every step, of norms that torch alone computed."""
    roles = {part.name: str(part.role) for part in components(_models.bert())}
    entries = []
    for norms in by_hand(_models.bert(), max_norm=MAX_NORM):
        entry = {"grad_norm": math.hypot(*norms.values())}
        for role in set(roles.values()):
            own = [norm for name, norm in norms.items() if roles[name] == role]
            entry[f"grad_norm/{role}"] = math.hypot(*own)
            entry[f"clip_rate/{role}"] = sum(norm > MAX_NORM for norm in own) / len(own)
        entries.append(entry)
    return entries


def assert_arrived(series: Series, log: list[dict[str, Any]]) -> None:
    """Compare what a reporter kept with the oracle, and with all that the Trainer logged."""
    oracle = expected()
    assert len(log) == len(oracle) == STEPS
    assert len({value for entry in oracle for name, value in entry.items() if name.startswith("clip_rate/")}) > 2
    for step, entry in enumerate(oracle, start=1):
        for name, value in entry.items():
            assert series[name][step] == pytest.approx(value, rel=1e-3, abs=1e-6), f"{name} at step {step}"
        for name, value in log[step - 1].items():  # loss and learning rate, too: nothing was pushed out
            assert name == "step" or series[name][step] == pytest.approx(value, rel=1e-6)


def test_tensorboard(arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    log = train(arguments(logging_steps=1, report_to=["tensorboard"]))
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert_arrived(
        {
            name.removeprefix("train/"): {one.step: one.value for one in events.Scalars(name)}
            for name in events.Tags()["scalars"]
        },
        log,
    )


@pytest.mark.slow
def test_weights_and_biases(arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "DISABLE_CODE": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    log = train(arguments(logging_steps=1, report_to=["wandb"]))
    wandb.finish()
    wandb.teardown()  # the process that writes the file ends: before that it may not all be there
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    series: Series = {}
    for row in offline_rows(kept):
        for name, value in row.items():
            if isinstance(value, int | float):
                series.setdefault(name.removeprefix("train/"), {})[row["train/global_step"]] = value
    assert_arrived(series, log)


def offline_rows(path: Path) -> list[dict[str, Any]]:
    """The history in a file that ``wandb sync`` would send."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            if "train/loss" in row:
                rows.append(row)
    return rows


def records(data: bytes) -> Iterator[bytes]:
    """What a file in LevelDB's log format holds, behind W&B's own seven bytes: newer versions bring no reader."""
    place, block, header = 7, 2**15, 7
    whole = b""
    while place + header <= len(data):
        if block - place % block < header:  # no header fits into the rest of a block
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or the last of several pieces
            yield whole
            whole = b""


@pytest.mark.slow
@pytest.mark.parametrize(
    "store",
    [
        "sqlite",  # MLflow's default
        pytest.param(
            "file",
            marks=pytest.mark.xfail(
                raises=KeyError,
                reason="the file store keeps a metric in a file of its name: grad_norm leaves no folder for its roles",
            ),
        ),
    ],
)
def test_mlflow(arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    where = {"sqlite": f"sqlite:///{tmp_path / 'mlflow.db'}", "file": (tmp_path / "runs").as_uri()}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where[store])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions have to be asked for it
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "clipped")
    monkeypatch.chdir(tmp_path)  # artefacts of the database's store lie beside it
    mlflow.set_tracking_uri(where[store])
    log = train(arguments(logging_steps=1, report_to=["mlflow"]))
    mlflow.flush_async_logging()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("clipped")
    (run,) = client.search_runs([experiment.experiment_id])
    series = {
        name: {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    assert_arrived(series, log)
