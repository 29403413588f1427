from __future__ import annotations

import dataclasses
import json
import pickle
import re
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


@pytest.mark.parametrize("field", [name for name in RunSpec.model_fields if name != "training"])
def test_every_field_of_a_run_makes_another_run(field: str) -> None:
    others = {
        "seed": 2,
        "init_seed": 1,
        "order_seed": 1,
        "split_seed": 1,
        "processes": 2,
        "overrides": {"adam_beta2": 0.98},
    }
    changed = {**SPEC.model_dump(), field: others.get(field, "other")}
    assert RunSpec.model_validate(changed).id != SPEC.id


def test_runs_that_differ_by_seeds_have_names_of_their_own() -> None:
    apart = [SPEC.model_copy(update=seeds) for seeds in ({"init_seed": 3}, {"order_seed": 3})]
    both = SPEC.model_copy(update={"init_seed": 3, "order_seed": 5})
    assert [run.draw for run in (SPEC, *apart, both)] == [1, "init 3", "order 3", "init 3, order 5"]
    assert len({run.id for run in (SPEC, *apart, both)}) == 4


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
    assert [(run.task.name, run.method, run.seed) for run in grid] == [
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


# --- overrides, sweeps, seeds apart, rules


def test_overrides_are_part_of_a_run_in_their_own_types() -> None:
    plan = made(overrides={"optim": "adamw_torch", "adam_epsilon": "1e-6", "label_smoothing_factor": 0})
    run = next(plan.grid())
    assert run.overrides == {"adam_epsilon": 1e-6, "label_smoothing_factor": 0.0, "optim": "adamw_torch"}
    assert isinstance(run.overrides["label_smoothing_factor"], float)
    assert Plan.stored(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"adam_beta3": 1}, "unknown field of TrainingArguments 'adam_beta3': did you mean 'adam_beta"),
        ({"adam_beta2": "high"}, r"adam_beta2: .*valid number.*\(given: 'high'\)"),
        ({"max_steps": 1.5}, r"max_steps: .*\(given: 1.5\)"),
        ({"output_dir": "x"}, "output_dir cannot be overridden: the study names its folders"),
        ({"seed": 3}, "seed cannot be overridden: seeds come from the plan"),
        ({"learning_rate": 3}, "learning_rate cannot be overridden: write training.learning_rate"),
        ({"hub_token": "secret"}, "hub_token cannot be overridden: .* a token would stand in its record"),
        ([1], "overrides: .*dict"),
    ],
    ids=str,
)
def test_overrides_that_cannot_be(overrides: Any, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        made(overrides=overrides)


def test_a_plan_of_another_machine_can_be_read_back() -> None:
    text = json.dumps({**json.loads(made().model_dump_json()), "overrides": {"of_a_later_version": 1}})
    assert Plan.stored(text).overrides == {"of_a_later_version": 1}
    with pytest.raises(ValueError, match="of_a_later_version"):
        Plan.model_validate_json(text)


def test_a_sweep_makes_recipes_and_methods() -> None:
    plan = made(
        methods=["full", "component-clip+llrd"],
        seeds=1,
        sweep={
            "training.learning_rate": ["1e-5", 2e-5],
            "component-clip.max_norm": [0.01, 1],
            "overrides.adam_beta2": [0.9],
        },
    )
    assert [(run.training.learning_rate, run.method) for run in plan.grid()] == [
        (rate, method)
        for rate in (1e-5, 2e-5)
        for method in ("full", "component-clip:max_norm=0.01+llrd", "component-clip:max_norm=1+llrd")
    ]
    assert all(run.overrides == {"adam_beta2": 0.9} for run in plan.grid())


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (
            {"training.learning_rat": [1]},
            "unknown field of training to sweep 'learning_rat': did you mean 'learning_rate'",
        ),
        ({"training.epochs": [1, 0]}, r"sweep: training.epochs: .*greater than 0 \(given: 0\)"),
        ({"training.epochs": []}, "sweep.training.epochs: .*at least 1"),
        ({"training.epochs": [1, 1]}, "sweep.training.epochs: 1 stands there twice"),
        ({"learning_rate": [1]}, "unknown key of a sweep 'learning_rate'.*training.FIELD"),
        (
            {"component-clp.max_norm": [1]},
            "unknown key of a sweep 'component-clp.max_norm': did you mean 'component-clip.OPT",
        ),
        ({"overrides.adam_beta3": [1]}, "unknown field of TrainingArguments 'adam_beta3'"),
    ],
    ids=str,
)
def test_sweeps_that_cannot_be(sweep: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        made(sweep=sweep)


@pytest.mark.parametrize(
    ("vary", "draws"),
    [
        (["init"], [(1, 5, None, None), (1, 7, None, None)]),
        (["order"], [(1, None, 5, None), (1, None, 7, None)]),
        (["split"], [(1, None, None, 5), (1, None, None, 7)]),
        (["init", "order"], [(1, 5, 5, None), (1, 5, 7, None), (1, 7, 5, None), (1, 7, 7, None)]),
        (["split", "init"], [(1, 5, None, 5), (1, 7, None, 5), (1, 5, None, 7), (1, 7, None, 7)]),
        ([], [(5, None, None, None), (7, None, None, None)]),
    ],
)
def test_what_is_not_varied_stays_fixed(vary: list[str], draws: list[tuple[int, ...]]) -> None:
    plan = made(methods=["full"], seeds=[5, 7], vary=vary)
    assert [(run.seed, run.init_seed, run.order_seed, run.split_seed) for run in plan.grid()] == draws
    assert all(run.task.split_seed == run.split_seed for run in plan.grid())


def test_a_task_may_have_a_split_of_its_own() -> None:
    plan = made(tasks=[{"name": "rte", "split_seed": 3}], methods=["full"], seeds=[5])
    assert [run.split_seed for run in plan.grid()] == [3]


def test_rules_choose_runs() -> None:
    plan = made(
        tasks=["rte", "cola"],
        methods=["full", "component-clip"],
        sweep={"component-clip.max_norm": [0.01, 1], "training.learning_rate": [1e-5, 1e-3]},
        exclude=[{"method": "component-clip:*", "training.learning_rate": "1e-3"}, {"task": "cola", "seed": [2, 3]}],
        include=[{"task": "cola"}, {"task": "rte", "seed": 1, "model": "tiny"}],
    )
    assert [(run.task.name, run.seed, run.training.learning_rate, run.method) for run in plan.grid()] == [
        (task, 1, rate, method)
        for task in ("rte", "cola")
        for rate, methods in ((1e-5, plan.expanded_methods()), (1e-3, ["full"]))
        for method in methods
    ]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"exclude": [{"metod": "full"}]}, "unknown field of a run in exclude 'metod': did you mean 'method'"),
        ({"exclude": [{"method": "fulll"}]}, "exclude: no run fits {method: fulll}; of method there is full, gradual"),
        ({"include": [{"task": "rte", "seed": 9}]}, "include: no run fits {task: rte, seed: 9}; of seed there is 1, 2"),
        ({"exclude": [{"task": "rte"}]}, "include and exclude leave no run"),
    ],
    ids=str,
)
def test_rules_that_cannot_be(rules: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        made(**rules)


def test_report_to_is_no_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    plan = made(overrides={"report_to": "tensorboard", "adam_beta2": 0.9})
    assert plan.measures.report_to == ("tensorboard",)
    assert plan.overrides == {"adam_beta2": 0.9}
    with pytest.raises(PlanError, match="unknown place to report to 'tensorbord': did you mean 'tensorboard'"):
        made(measures={"report_to": ["tensorbord"]})
    with pytest.raises(PlanError, match="'wandb' is not installed here; pip install wandb"):
        made(measures={"report_to": "wandb"})


# --- changes from the command line


def test_changes_replace_and_add(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("tasks: [{name: mine, train: a.csv, validation: b.csv}]\nseeds: 3\n", encoding="utf-8")
    changes = ["seeds=[4, 5]", "training.epochs=1", "tasks.0.label=y", "sweep.training.warmup=[0, 0.1]"]
    plan = load_plan(path, [*changes, "overrides.adam_beta2=0.9"])
    assert (plan.seeds, plan.training.epochs, plan.tasks[0].label) == ((4, 5), 1.0, "y")
    assert plan.sweep == {"training.warmup": (0, 0.1)}
    assert plan.overrides == {"adam_beta2": 0.9}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("traning.epochs=1", "study.yaml' with --set traning.epochs=1: unknown key 'traning': did you mean 'training'"),
        ("training.epoch=1", "unknown key 'epoch': did you mean 'epochs'"),
        ("seeds", "--set 'seeds' is no change; write --set key=value"),
        ("seeds=[1", "value cannot be read as YAML"),
        ("tasks.3.label=y", "'3' is no entry of a list of 1"),
        ("seeds.x=1", "'x' stands below a single value"),
        ("seeds.x.y=1", "'x' stands below a single value"),
    ],
)
def test_changes_that_cannot_be(tmp_path: Path, change: str, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("tasks: [rte]\nseeds: 3\n", encoding="utf-8")
    with pytest.raises(PlanError, match=re.escape(said)):
        load_plan(path, [change])


# --- bad plans


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        Plan.checked({"task": ["rte"], "seeds": 0, "training": {"epochs": -1, "lr": 1}}, where="the plan")
    lines = str(caught.value).splitlines()
    assert lines[0] == "the plan has 4 faults:"
    assert [re.split("[,:;]", line)[0] for line in lines[1:]] == [
        "- unknown key 'lr'",
        "- unknown key 'task'",
        "- seeds",
        "- training.epochs",
    ]


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
        ({"training": {"precision": "int8"}}, r"precision: .*'float32', 'bf16', 'fp16' or 'auto' \(given: 'int8'\)"),
    ],
    ids=str,
)
def test_a_bad_plan_is_refused_in_plain_words(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=f"^the test: .*{said}|^the test: {said}"):
        made(**changes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- rte\n- mrpc\n", "must be a mapping with the keys tasks, models, methods, seeds, "),
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
