from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file
from tests.study._small import InlineEngine, MakePlan

from evenkeel.study import Study, StudyFolder
from evenkeel.study._disk import checkpoint_disk, disk_notice


class Usage(NamedTuple):
    free: int


@pytest.mark.parametrize(
    ("at_a_time", "keep", "checkpoints"), [(1, False, 2), (2, False, 4), (9, False, 8), (2, True, 6)]
)
def test_there_are_two_checkpoints_of_each_run_for_a_moment(
    make_plan: MakePlan, small_model: Path, at_a_time: int, keep: bool, checkpoints: int
) -> None:
    jobs = Study(make_plan(), StudyFolder(Path("unused"))).jobs()
    encoder = sum(tensor.numel() for tensor in load_file(small_model / "model.safetensors").values())
    head = 2 * 16 + 2
    assert checkpoint_disk(jobs, at_a_time=at_a_time, keep=keep) == checkpoints * 12 * (encoder + head)
    assert checkpoint_disk([], at_a_time=at_a_time, keep=keep) == 0


def test_too_little_is_told(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Study(make_plan(), StudyFolder(tmp_path)).jobs()
    for free, said in ((5 * 10**12, "5.0 TB are free"), (1000, "1.0 kB are free, which is too little: free some")):
        monkeypatch.setattr("evenkeel.study._disk.shutil.disk_usage", lambda _, free=free: Usage(free))
        notice = disk_notice(jobs, tmp_path / "new", at_a_time=1, keep=False)
        assert notice.startswith("checkpoints take up to about 1")
        assert said in notice


def test_a_study_tells_it_before_it_starts(make_plan: MakePlan, tmp_path: Path) -> None:
    heard: list[str] = []
    study = Study(make_plan(methods=["full"], seeds=1, checkpoints={"every_steps": 100}), StudyFolder(tmp_path / "a"))
    study.run(InlineEngine(), on_report=lambda report: heard.append(report.event), on_notice=heard.append)
    assert heard[0].startswith("checkpoints take up to about")
    assert heard[1:] == ["started", "ended"]
    study.run(InlineEngine(), on_notice=heard.append)  # nothing is left to do, and nothing to tell
    assert len(heard) == 3
