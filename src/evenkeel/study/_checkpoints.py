"""Checkpoints inside a run: written whole or not at all, taken up exactly or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from filelock import FileLock
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel.study._manifest import Manifest, read_manifest, sync_folder, write_manifest
from evenkeel.study._meter import Meter, Spent
from evenkeel.study._replacement import PretrainedLayers

__all__ = ["Checkpointing", "RunCheckpoints", "RunStopped", "checkpoint_bytes", "keeping"]

_LONGEST_WAIT_SECONDS = 60.0  # for a worker whose driver is gone, and which has not noticed yet
_NUMBERS_PER_PARAMETER = 3  # the weight and AdamW's two moments
_TENSORS, _ORDER, _LAYER = "evenkeel_run.safetensors", "order", "layer."


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where and how often a run keeps a checkpoint.

    It is written at the first point of the loss curve at which it is due: there the Trainer's sum of losses is empty,
    so that the curve goes on exactly.

    Attributes:
        folder: the run's own folder for checkpoints.
        every_steps: optimizer steps between two checkpoints; None where time decides alone.
        every_minutes: minutes between two checkpoints; None where steps decide alone.
    """

    folder: Path
    every_steps: int | None = None
    every_minutes: float | None = None


class RunStopped(Exception):  # noqa: N818  it is no error: the run goes on another time
    """A run left a checkpoint and stopped, because it was asked to."""


def checkpoint_bytes(parameters: int) -> int:
    """Return about how much disk a checkpoint takes, in bytes: float32 weights, and two moments for each."""
    return parameters * _NUMBERS_PER_PARAMETER * 4


@final
class RunCheckpoints(TrainerCallback):
    """Keeps a run's latest checkpoint, and in it what the run has beside the Trainer's state.

    That is: what it took so far, the pretrained weights of what methods added (for layer replacement), and the
    generator's state at the beginning of the epoch, from which the order of the data is drawn.

    It must come after the callbacks that write into a checkpoint too, as the Recorder does.

    Attributes:
        output_dir: what the Trainer is to take for its output folder.
    """

    def __init__(
        self, how: Checkpointing, output_dir: Path, *, run: str, stopping: Callable[[], bool], meter: Meter
    ) -> None:
        """Keep checkpoints of ``run`` as ``how`` says, written in ``output_dir`` first."""
        self.output_dir = output_dir
        self._how, self._run, self._stopping, self._meter = how, run, stopping, meter
        self._provenance: dict[str, Any] = {}
        self._layers: PretrainedLayers | None = None
        self._own_layers: frozenset[str] = frozenset()
        self._earlier = Spent()
        self._order: Tensor | None = None
        self._resumed_within_epoch = self._stopped = False
        self._last_step, self._last_time = 0, time.monotonic()

    def find(self, provenance: Mapping[str, Any], *, layers: PretrainedLayers | None) -> str | None:
        """Look for a checkpoint to go on from, and take up what is in it beside the Trainer's state.

        Args:
            provenance: what the run is made with; what was made otherwise would not go on exactly.
            layers: the pretrained weights that layer replacement needs.

        Returns:
            The folder, for the Trainer; None where there is none that is whole and fits.
        """
        self._provenance, self._layers = dict(provenance), layers
        self._own_layers = frozenset(layers.weights if layers else ())
        found = self._newest()
        if found is None:
            return None
        self._take_up(*found)
        return str(found[0])

    def spent(self) -> Spent:
        """Return what the whole run took so far, counting the steps alone that count."""
        return self._earlier + self._meter.spent()

    def finish(self) -> None:
        """Raise ``RunStopped`` where the training ended because it was asked to stop."""
        if self._stopped:
            raise RunStopped(f"run {self._run} stopped after step {self._last_step}")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the state that the order of this epoch is drawn from, or put it back for the rest of an epoch."""
        if self._resumed_within_epoch and self._order is not None:
            torch.set_rng_state(self._order)
        self._resumed_within_epoch = False
        self._order = torch.get_rng_state()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint where one is due and the loss curve has a point."""
        if not control.should_log or state.global_step >= state.max_steps:
            return
        self._stopped = self._stopping()
        if self._stopped or self._due(state.global_step):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the checkpoint that was just written, and put it in the place of the one before."""
        made = self.output_dir / f"checkpoint-{state.global_step}"
        if control.should_training_stop:  # it diverged at this very step: that is a result, and nothing to take up
            self._stopped = False
            shutil.rmtree(made)
            return
        self._complete(made, state)
        self._last_step, self._last_time = state.global_step, time.monotonic()
        control.should_training_stop = self._stopped

    def _due(self, step: int) -> bool:
        steps, minutes = self._how.every_steps, self._how.every_minutes
        by_steps = steps is not None and step // steps > self._last_step // steps
        return by_steps or (minutes is not None and time.monotonic() - self._last_time >= 60 * minutes)

    def _complete(self, made: Path, state: TrainerState) -> None:
        from safetensors.torch import save_file

        (made / "training_args.bin").unlink(missing_ok=True)  # a pickle, with paths of this machine
        tensors = {} if self._order is None else {_ORDER: self._order}
        for name, weights in (self._layers.weights if self._layers else {}).items():
            if name not in self._own_layers:
                tensors[f"{_LAYER}{name}"] = weights.contiguous()
        save_file(tensors, made / _TENSORS)
        spent = self.spent()
        manifest = Manifest(
            run=self._run,
            step=state.global_step,
            provenance=self._provenance,
            wall_seconds=spent.wall_seconds,
            cpu_seconds=spent.cpu_seconds,
            peak_memory=dict(spent.peak_memory),
            within_epoch=not float(state.epoch or 0).is_integer(),  # as the Trainer counts it
        )
        write_manifest(made, manifest)
        home = self._how.folder / made.name
        os.replace(made, home)
        sync_folder(self._how.folder)
        for older in self._how.folder.glob("checkpoint-*"):
            if older.name != home.name:
                shutil.rmtree(older, ignore_errors=True)

    def _newest(self) -> tuple[Path, Manifest] | None:
        """Find the newest checkpoint that is whole and fits; drop the others, which nobody would ever use."""
        newest: tuple[Path, Manifest] | None = None
        for folder in self._how.folder.glob("checkpoint-*"):
            manifest = read_manifest(folder)
            fits = manifest is not None and (manifest.run, manifest.provenance) == (self._run, self._provenance)
            if manifest is None or not fits:
                folder.unlink() if folder.is_symlink() or folder.is_file() else shutil.rmtree(folder)
            elif newest is None or manifest.step > newest[1].step:
                newest = folder, manifest
        return newest

    def _take_up(self, folder: Path, manifest: Manifest) -> None:
        from safetensors.torch import load_file

        self._earlier = Spent(
            wall_seconds=manifest.wall_seconds, cpu_seconds=manifest.cpu_seconds, peak_memory=manifest.peak_memory
        )
        self._last_step = manifest.step
        tensors = load_file(folder / _TENSORS)
        self._order, self._resumed_within_epoch = tensors.pop(_ORDER, None), manifest.within_epoch
        if self._layers is not None:
            added = {name.removeprefix(_LAYER): weights for name, weights in tensors.items()}
            self._layers.weights = {**added, **self._layers.weights}


@contextmanager
def keeping(how: Checkpointing, *, run: str, stopping: Callable[[], bool], meter: Meter) -> Iterator[RunCheckpoints]:
    """Hold a run's folder for checkpoints, with a place to write them in.

    Args:
        how: where and how often.
        run: the run's id.
        stopping: asked at each point of the loss curve; once it says yes, the run leaves a checkpoint and stops.
        meter: measures this part of the run.

    Yields:
        The callback.
    """
    how.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(how.folder / ".lock").acquire(timeout=_LONGEST_WAIT_SECONDS):
        for left in how.folder.glob(".writing-*"):  # by a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=how.folder, prefix=".writing-") as scratch:
            yield RunCheckpoints(how, Path(scratch), run=run, stopping=stopping, meter=meter)
