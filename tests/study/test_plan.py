from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from evenkeel.errors import PlanError
from evenkeel.study import Measures, Plan, RunSpec, Training, load_plan
from evenkeel.tasks import TaskSource

SPEC = RunSpec(
    task="rte",
    metric="accuracy",
    data_fingerprint="0123456789abcdef",
    model="tiny",
    model_fingerprint="fedcba9876543210",
    method="component-clip",
    seed=1,
    training=Training(),
)
OTHER_TRAINING: dict[str, Any] = {
    "learning_rate": 3e-5,
    "epochs": 4.0,
    "batch_size": 32,
    "max_length": 64,
    "weight_decay": 0.01,
    "warmup": 0.1,
    "schedule": "cosine",
    "precision": "bf16",
    "group_by_length": False,
    "record_every": 1,
}


def made(**changes: Any) -> Plan:
    return Plan.checked({"tasks": ["rte"], "seeds": 2, **changes}, where="the test")


# --- what identifies a run


def test_the_id_of_a_run_never_changes() -> None:
    assert SPEC.id == "7d5ff356bcbea9c3"  # else every study that people have would begin anew
    assert pickle.loads(pickle.dumps(SPEC)).id == SPEC.id  # noqa: S301  our own


@pytest.mark.parametrize("field", Training.model_fields)
def test_every_field_of_the_recipe_makes_another_run(field: str) -> None:
    other = SPEC.model_copy(update={"training": Training(**{field: OTHER_TRAINING[field]})})
    assert other.id != SPEC.id


@pytest.mark.parametrize("field", [name for name in RunSpec.model_fields if name not in ("seed", "training")])
def test_every_field_of_a_run_makes_another_run(field: str) -> None:
    assert SPEC.model_copy(update={field: "other"}).id != SPEC.id != SPEC.model_copy(update={"seed": 2}).id


def test_the_plan_and_the_tasks_describe_data_alike() -> None:
    task = made().tasks[0]
    assert list(type(task).model_fields) == [field.name for field in dataclasses.fields(TaskSource)]
    assert task.source() == TaskSource(name="rte")


def test_what_is_measured_makes_no_other_run_and_old_plans_measure_nothing() -> None:
    asked = made(measures={"layer_replacement": True})
    assert set(Measures.model_fields) & set(RunSpec.model_fields) == set()
    assert asked.measures.layer_replacement
    assert list(asked.grid()) == list(made().grid())
    old = json.loads(made().model_dump_json())
    del old["measures"]
    assert Plan.model_validate(old) == made()
    assert not made().measures.layer_replacement


# --- good plans


def test_a_number_counts_seeds_and_a_list_names_them() -> None:
    assert made(seeds=3).seeds == (1, 2, 3)
    assert made(seeds=[42]).seeds == (42,)


def test_the_grid_finishes_a_seed_before_the_next() -> None:
    grid = made(tasks=["rte", "cola"], methods=["full", "component-clip"]).grid()
    assert [(task.name, method, seed) for task, _, method, seed in grid] == [
        (task, method, seed) for task in ("rte", "cola") for seed in (1, 2) for method in ("full", "component-clip")
    ]


def test_a_plan_is_read_from_yaml_with_files_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "tasks:\n- name: mine\n  train: data/a.csv\n  validation: /b.csv\n  text: [title, body]\n- rte\n"
        "seeds: [3, 5]\ntraining: {learning_rate: 2e-5, epochs: 1}\n",
        encoding="utf-8",
    )
    plan = load_plan(path)
    assert plan.tasks[0].train == tmp_path / "data" / "a.csv"
    assert plan.tasks[0].validation == Path("/b.csv")
    assert plan.tasks[0].text == ("title", "body")
    assert plan.training.learning_rate == 2e-5  # which YAML reads as text
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


# --- bad plans


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sedes": 3}, "unknown key 'sedes': did you mean 'seeds'"),
        ({"training": {"learning_rat": 1}}, "unknown key 'learning_rat': did you mean 'learning_rate'"),
        ({"tasks": [{"name": "a", "trian": "x"}]}, "unknown key 'trian': did you mean 'train'"),
        ({"tasks": []}, "tasks: .*at least 1"),
        ({"tasks": [{}]}, "tasks.0.name: field required"),
        ({"methods": []}, "methods: .*at least 1"),
        ({"methods": "full"}, "methods: .*'full'"),
        ({"methods": ["full", "full"]}, "methods: 'full' stands there twice"),
        ({"models": ["a", "b", "a"]}, "models: 'a' stands there twice"),
        ({"tasks": ["rte", {"name": "rte", "label": "x"}]}, "tasks: 'rte' stands there twice"),
        ({"seeds": [1, 2, 1]}, "seeds: 1 stands there twice"),
        ({"seeds": 0}, r"seeds: a single number counts seeds, from 1 .*give a list.*\(given: 0\)"),
        ({"seeds": -3}, r"counts seeds.*\(given: -3\)"),
        ({"seeds": 20210325}, r"to name seeds, give a list.*\(given: 20210325\)"),
        ({"seeds": []}, "seeds: .*at least 1"),
        ({"seeds": [-1]}, r"seeds.0: .*\(given: -1\)"),
        ({"seeds": [2**32]}, r"seeds.0: .*less than 4294967296"),
        ({"training": {"learning_rate": 0}}, r"training.learning_rate: .*greater than 0 \(given: 0\)"),
        ({"training": {"learning_rate": float("nan")}}, r"training.learning_rate: .*\(given: NaN\)"),
        ({"training": {"learning_rate": float("inf")}}, r"training.learning_rate: .*finite.*\(given: inf\)"),
        ({"training": {"learning_rate": "fast"}}, r"learning_rate: .*valid number.*\(given: 'fast'\)"),
        ({"training": {"epochs": 0}}, r"training.epochs: .*greater than 0"),
        ({"training": {"batch_size": 0.5}}, r"training.batch_size: .*\(given: 0.5\)"),
        ({"training": {"max_length": 3}}, r"training.max_length: .*greater than or equal to 4 \(given: 3\)"),
        ({"training": {"warmup": 1}}, r"training.warmup: .*less than 1"),
        ({"training": {"weight_decay": -1}}, r"training.weight_decay: .*greater than or equal to 0"),
        ({"training": {"schedule": "square"}}, r"schedule: .*'linear', 'cosine' or 'constant' \(given: 'square'\)"),
        ({"measures": {"layer_replacment": True}}, "unknown key 'layer_replacment': did you mean 'layer_replacement'"),
        ({"measures": {"layer_replacement": "much"}}, r"measures.layer_replacement: .*boolean.*\(given: 'much'\)"),
        ({"training": {"precision": "int8"}}, r"precision: .*'float32', 'bf16' or 'fp16' \(given: 'int8'\)"),
    ],
    ids=str,
)
def test_a_bad_plan_is_refused_in_plain_words(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=f"^the test: .*{said}|^the test: {said}"):
        made(**changes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- rte\n- mrpc\n", "must be a mapping with the keys tasks, models, methods, seeds, training"),
        (b"", "must be a mapping"),
        (b"tasks: [rte\n", "cannot be read: while parsing"),
        (b"\xff\xfe", "cannot be read: .*utf-8"),
        (None, "cannot be read: .*No such file"),
    ],
    ids=["list", "empty", "unclosed", "encoding", "missing"],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError, match=f"(?s)study.yaml' {said}"):
        load_plan(path)
