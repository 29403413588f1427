"""How large the page of a large study is, how long it takes to write, and how long a browser takes to open it.

    python benchmarks/report.py [--runs 500] [--layers 12] [--records 50] [--browser /usr/bin/chromium]

The study is made up: five methods, two tasks, and for each run a loss curve of 60 points, telemetry of every component
of a BERT of so many layers at so many recorded steps, and predictions. Opening is timed from the request until the
page is there, its first figure was scrolled to and drawn, and it answers: in a headless browser, the median of five.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evenkeel.measure import TELEMETRY
from evenkeel.report import write_report
from evenkeel.study import Plan, RunSpec, Store, StudyFolder

sys.path.insert(0, str(Path(__file__).parent))
from optim import table

METHODS = ("full", "component-clip", "warmup", "llrd", "mixout")
ROLES = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out", "norm")


def outcome(score: float) -> dict[str, Any]:
    """Return what a run's record says."""
    versions = {"evenkeel": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}
    return {
        "metric": "accuracy",
        "scores": {"validation": score},
        "majority": {"validation": 0.55},
        "constant": False,
        "failed": score < 0.58,
        "failed_by_majority": score <= 0.55,
        "steps": 500,
        "wall_seconds": 12.5,
        "cpu_seconds": 12.0,
        "provenance": {"versions": versions, "python": "3.11.7", "device": "cpu (x86_64)", "threads": 1},
    }


def telemetry(rng: np.random.Generator, layers: int, records: int) -> pa.Table:
    """Return what a run of a BERT recorded."""
    parts = [("embedding.word", None, "embedding"), ("pooler", None, "pooler"), ("head", None, "head")]
    parts += [(f"layer.{layer}.{role}", layer, role) for layer in range(layers) for role in ROLES]
    kinds = [(*part, kind) for part in parts for kind in ("weight", "bias")]
    n = len(kinds) * records
    columns: dict[str, Any] = {
        "step": np.repeat(np.arange(1, records + 1) * 10, len(kinds)),
        "phase": np.zeros(n),
        "component": [f"{path}.{kind}" for path, _, _, kind in kinds] * records,
        "layer": [layer for _, layer, _, _ in kinds] * records,
        "role": [role for _, _, role, _ in kinds] * records,
        "kind": [kind for _, _, _, kind in kinds] * records,
        "size": np.full(n, 768),
    }
    drawn = {name: rng.lognormal(-3, 2, n) for name in TELEMETRY.names if name not in columns}
    return pa.table(
        {name: pa.array(({**columns, **drawn})[name]).cast(TELEMETRY.field(name).type) for name in TELEMETRY.names}
    )


def made_up(folder: StudyFolder, runs: int, layers: int, records: int) -> None:
    """Write a study."""
    rng = np.random.default_rng(0)
    tasks = ("rte", "cola")
    plan = Plan(
        tasks=[{"name": task} for task in tasks], methods=METHODS, seeds=max(1, runs // len(METHODS) // len(tasks))
    )
    specs = [
        RunSpec(
            task=run.task.name, metric="accuracy", data_fingerprint="d", model="bert", model_fingerprint="m",
            method=run.method, seed=run.seed, training=run.training,
        )
        for run in plan.grid()
    ]  # fmt: skip
    folder.path.mkdir()
    with closing(Store(folder.store)) as store:
        store.save_plan(plan, specs)
        for spec in specs:
            score = float(np.clip(rng.normal(0.68, 0.06), 0.5, 0.8))
            steps = np.arange(1, 61) * 8
            log = {"step": pa.array(steps, pa.int32()), "epoch": steps / 160, "loss": rng.normal(0.5, 0.1, 60)}
            predicted = pa.array(rng.integers(0, 2, 277), pa.int32())
            said = {"part": ["validation"] * 277, "example": pa.array(range(277), pa.int32())}
            tables = {
                "log": pa.table({**log, "learning_rate": steps * 1e-7}),
                "telemetry": telemetry(rng, layers, records),
                "predictions": pa.table({**said, "label": predicted, "prediction": predicted}),
            }
            folder.write_run(spec.id, tables)
            store.finish(spec.id, "failed" if score < 0.58 else "done", outcome=outcome(score))


def opened(page: Path, program: str) -> list[float]:
    """Return seconds until the first figure is drawn, for five visits."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(5):
            tab = browser.new_page()
            began = time.perf_counter()
            tab.goto(page.as_uri())
            tab.locator(".figure").first.scroll_into_view_if_needed()
            tab.wait_for_selector(".figure .main-svg", state="attached")
            tab.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
            found.append(time.perf_counter() - began)
            tab.close()
        browser.close()
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--records", type=int, default=50)
    parser.add_argument("--browser", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = StudyFolder(Path(scratch) / "study")
        made_up(folder, given.runs, given.layers, given.records)
        stored = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())
        began = time.perf_counter()
        page = write_report(folder.path)
        seconds = time.perf_counter() - began
        rows = [("study on disk", f"{stored / 1e6:.1f} MB"), ("page", f"{page.stat().st_size / 1e6:.2f} MB")]
        rows.append(("writing it", f"{seconds:.1f} s"))
        if given.browser:
            visits = opened(page, given.browser)
            rows.append(("opening it", f"{statistics.median(visits):.2f} s ({min(visits):.2f} to {max(visits):.2f})"))
    print(f"{given.runs} runs, {given.layers} layers, {given.records} recorded steps\n")
    table(("what", "how much"), rows)


if __name__ == "__main__":
    main()
