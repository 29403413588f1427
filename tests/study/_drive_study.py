"""A driver in a process of its own: ``python _drive_study.py PLAN.json FOLDER WORKERS``."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    from evenkeel.study import Plan, Study, StudyFolder  # not above: workers import this file again
    from evenkeel.study.engines import LocalEngine

    plan, folder, workers = sys.argv[1:]
    study = Study(Plan.model_validate_json(Path(plan).read_text(encoding="utf-8")), StudyFolder(Path(folder)))
    study.run(LocalEngine(workers=int(workers)), on_notice=lambda said: print(said, flush=True))


if __name__ == "__main__":  # workers import this file again
    main()
