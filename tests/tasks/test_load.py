from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from evenkeel.errors import DataError
from evenkeel.tasks import TaskData, TaskSource, load_task, majority_score

Load = Callable[..., TaskData]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load people's own data from columns; validation is as train unless it is given."""

    def made(
        train: dict[str, Sequence[Any]], validation: dict[str, Sequence[Any]] | None = None, **source: Any
    ) -> TaskData:
        for part, columns in (("train", train), ("validation", validation or train)):
            pa.parquet.write_table(pa.table({name: list(column) for name, column in columns.items()}), path(part))
        return load_task(
            TaskSource(**{"name": "mine", "train": path("train"), "validation": path("validation")} | source)
        )

    def path(part: str) -> Path:
        return tmp_path / f"{part}.parquet"

    return made


def texts(count: int) -> list[str]:
    return [f"sentence {number}" for number in range(count)]


# --- columns and labels


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "9", "-1"], ("-1", "9", "10"), [2, 1, 0]),
        ([5, 3, 5], ("3", "5"), [1, 0, 1]),
        ([True, False, True], ("0", "1"), [1, 0, 1]),
        (["1", "1a", "01"], ("01", "1", "1a"), [1, 2, 0]),
        (["--1", "1", "1"], ("--1", "1"), [0, 1, 1]),
        (["nan", "None", "nan"], ("None", "nan"), [1, 0, 1]),
    ],
)
def test_labels_are_numbered_in_a_fixed_order(
    load: Load, labels: list[Any], classes: tuple[str, ...], numbers: list[int]
) -> None:
    data = load({"text": texts(3), "label": labels})
    assert data.classes == classes
    assert data.train["label"][:] == numbers


@pytest.mark.parametrize(
    ("columns", "source", "used"),
    [
        (["sentence1", "sentence2", "label"], {}, ("sentence1", "sentence2")),
        (["premise", "hypothesis", "label"], {}, ("premise", "hypothesis")),
        (["sentence", "label", "text"], {}, ("sentence",)),
        (["title", "body", "label"], {"text": ("body", "title")}, ("body", "title")),
        (["text", "stars"], {"label": "stars"}, ("text",)),
        (["text+more", "text", "label"], {"text": ("text+more",)}, ("text+more",)),
    ],
)
def test_text_columns_are_found_or_named(
    load: Load, columns: list[str], source: dict[str, Any], used: tuple[str, ...]
) -> None:
    table = {name: [f"{name} a", f"{name} b"] for name in columns}
    data = load(table, **source)
    assert data.task.text == used
    assert data.train["text"][:] == table[used[0]]
    assert data.train.column_names == (["text", "text_pair", "label"] if len(used) == 2 else ["text", "label"])
    assert data.test is None


@pytest.mark.parametrize(
    ("train", "validation", "source", "said"),
    [
        (
            {"words": ["a", "b"], "label": [0, 1]},
            None,
            {},
            "has the columns words, label; name the text column .*--text",
        ),
        ({"text": ["a", "b"], "lable": [0, 1]}, None, {}, "train: unknown column 'label': did you mean 'lable'"),
        ({"text": ["a", "b"], "label": [0, 1]}, None, {"text": ("txt",)}, "unknown column 'txt': did you mean 'text'"),
        (
            {"text": ["a", "b"], "label": [0, 1]},
            {"txt": ["a", "b"], "label": [0, 1]},
            {},
            "validation: unknown column 'text': did you mean 'txt'",
        ),
        (
            {"text": ["a", "b"], "label": [0, 1]},
            {"text": ["a", "b"], "label": [0, 2]},
            {},
            r"the validation part has the label '2', which no training example has \(0, 1\); check",
        ),
        ({"text": ["a", "b"], "label": [1, 1]}, None, {}, "all examples of the train part have the label '1'"),
        (
            {"text": ["a", "b"], "label": [0, 1]},
            {"text": ["a", "b"], "label": [0, 0]},
            {},
            "all examples of the validation part have the label '0', so there is nothing .*check the label column",
        ),
        ({"text": ["a", " \t"], "label": [0, 1]}, None, {}, "train: example 2 has no text in column 'text'; fill it"),
        ({"text": ["a", None], "label": [0, 1]}, None, {}, "train: example 2 has no text"),
        ({"text": [1, 2], "label": [0, 1]}, None, {}, "train: example 1 has no text"),
        (
            {"text": ["a", "b"], "label": [0, None]},
            None,
            {},
            "train: example 2 has no label in column 'label'; fill it",
        ),
        ({"text": ["a", "b"], "label": ["x", ""]}, None, {}, "train: example 2 has no label"),
        ({"text": ["a", "b"], "label": [0.5, 1.0]}, None, {}, "label 0.5 of example 1 is no class; .*regression"),
        ({"text": ["a", "b"], "label": [[1], [0]]}, None, {}, r"label \[1\] of example 1 is no class"),
        (
            {"text": texts(3), "label": ["3.8", "0", "5"]},
            None,
            {},
            "3 different values such as '5', .*no classes; .*--label",
        ),
        ({"text": texts(30), "label": texts(30)}, None, {}, "30 different values .*--label"),
        (
            {"text": ["a", "b", "c"], "label": ["0.5", "x", "1"]},
            None,
            {"metric": "pearson"},
            "train: the label 'x' of example 2 is no finite number, and pearson is a metric for regressions; .*f1",
        ),
        (
            {"text": ["a", "b"], "label": [0.5, float("nan")]},
            None,
            {"metric": "spearman"},
            "train: the label nan of exa",
        ),
        (
            {"text": ["a", "b"], "label": ["1e999", "0"]},
            None,
            {"metric": "spearman"},
            "train: the label '1e999' of exa",
        ),
        (
            {"text": ["a", "b"], "label": [[1.0], [2.0]]},
            None,
            {"metric": "pearson"},
            r"train: the label \[1.0\] of exam",
        ),
        ({"text": ["a", "b"], "label": [0.5, None]}, None, {"metric": "pearson"}, "train: example 2 has no label"),
        (
            {"text": ["a", "b"], "label": [0.5, 1.5]},
            {"text": ["a", "b"], "label": [2, 2]},
            {"metric": "pearson"},
            "all examples of the validation part have the label 2.0",
        ),
        (
            {"a": ["a", "b"], "b": ["c", ""], "label": [0, 1]},
            None,
            {"text": ("a+b",)},
            "train: example 2 has no text in column 'b'",
        ),
        (
            {"a": ["a", "b"], "bc": ["c", "d"], "label": [0, 1]},
            None,
            {"text": ("a+bd",)},
            "unknown column 'bd': .* 'bc'",
        ),
        (
            {"a": ["a", "b"], "b": ["c", "d"], "answer": ["x", "y"]},
            None,
            {"metric": "exact_match", "text": ("a", "b")},
            r"2 text columns were named \(a, b\); name one that holds the prompt",
        ),
        (
            {"prompt": ["a", "b"], "answer": ["x", " "]},
            None,
            {"metric": "exact_match"},
            "train: example 2 has no text in",
        ),
        (
            {"prompt": ["a", "b"], "answer": [["x"], ["y"]]},
            None,
            {"metric": "exact_match"},
            "train: example 1 has no text",
        ),
        (
            {"prompt": ["a", "b"], "answer": ["x", "x"]},
            None,
            {"metric": "exact_match"},
            "all .* train part have the answ",
        ),
        ({"text": ["a", "b"], "label": [0, 1]}, None, {"metric": "f2"}, "unknown metric 'f2': did you mean 'f1'"),
        (
            {"text": texts(3), "label": [0, 1, 2]},
            None,
            {"metric": "f1"},
            "f1 is for two classes, and there are 3; use macro",
        ),
        (
            {"text": ["a", "b"], "label": [0, 1]},
            None,
            {"text": ("text",) * 3},
            "3 text columns were named .*one or two",
        ),
    ],
)
def test_data_that_cannot_be_learnt_from_is_refused(
    load: Load,
    train: dict[str, Sequence[Any]],
    validation: dict[str, Sequence[Any]] | None,
    source: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(DataError, match=f"^(mine.*|'.*' )?{said}"):
        load(train, validation, **source)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,label\na,0,1\nb,1,0\n", encoding="utf-8")
    with pytest.raises(DataError, match="several columns are named 'label'; rename all but one"):
        load_task(TaskSource(name="mine", train=path, validation=path))


@pytest.mark.parametrize(("given", "missing"), [("train", "validation"), ("validation", "train")])
def test_one_file_without_the_other_is_refused(tmp_path: Path, given: str, missing: str) -> None:
    with pytest.raises(DataError, match=f"only the {given}.* file was given; give the {missing}.* file too"):
        load_task(TaskSource(name="mine", **{given: tmp_path / "a.csv"}))  # type: ignore[arg-type]


def test_an_unknown_task_offers_the_nearest() -> None:
    with pytest.raises(DataError, match="unknown task 'mprc': did you mean 'mrpc'.*--train, --validation"):
        load_task(TaskSource(name="mprc"))


def test_texts_are_joined_from_several_columns(load: Load) -> None:
    data = load({"a": ["x", "y"], "b": ["1", "2"], "c": ["p", "q"], "label": [0, 1]}, text=("c", "a + b"))
    assert data.train["text_pair"][:] == ["x 1", "y 2"]
    assert data.train["text"][:] == ["p", "q"]


def test_numbers_are_labels_of_a_regression(load: Load) -> None:
    data = load({"text": texts(3), "label": ["1", "2.50", "-3e-1"]}, metric="spearman")
    assert (data.problem, data.classes, data.task.metric) == ("regression", (), "spearman")
    assert data.train["label"][:] == [1.0, 2.5, -0.3]
    as_numbers = load({"text": texts(3), "label": [1, 2.5, -0.3]}, metric="pearson")
    assert as_numbers.fingerprint == data.fingerprint
    whole = {"text": texts(4), "label": [1, 2, 1, 2]}  # of one file a classification or a regression can be made
    assert load(whole).fingerprint != load(whole, metric="pearson").fingerprint


@pytest.mark.parametrize(
    ("columns", "source"),
    [
        (["prompt", "answer", "label"], {}),
        (["question", "answer"], {}),
        (["ask", "say"], {"text": ("ask",), "label": "say"}),
    ],
)
def test_answers_are_labels_of_a_language_model(load: Load, columns: list[str], source: dict[str, Any]) -> None:
    data = load({name: [f"{name} a", f"{name} b"] for name in columns}, metric="exact_match", **source)
    assert (data.problem, data.classes) == ("causal-lm", None)
    assert data.train["text"][:] == [f"{columns[0]} a", f"{columns[0]} b"]
    assert data.train["label"][:] == [f"{columns[1]} a", f"{columns[1]} b"]


def test_numbers_are_answers_too(load: Load) -> None:
    data = load({"prompt": texts(4), "answer": [1, 2, 3, 4]}, metric="inverse_perplexity", test_split="half")
    assert data.train["label"][:] == ["1", "2", "3", "4"]


# --- a part of the data


def test_a_subset_is_the_same_every_time_and_keeps_the_order(load: Load) -> None:
    columns = {"text": texts(50), "label": [0, 1] * 25}
    some, again = load(columns, max_train_samples=20), load(columns, max_train_samples=20)
    assert some.fingerprint == again.fingerprint != load(columns).fingerprint
    assert len(some.train) == 20
    places = [columns["text"].index(text) for text in some.train["text"]]
    assert places == sorted(set(places)) != list(range(20))
    assert len(some.validation) == 50
    assert load(columns, max_train_samples=1000).fingerprint == load(columns).fingerprint


def test_a_subset_without_some_class_is_refused(load: Load) -> None:
    columns = {"text": texts(50), "label": [0, 1] * 24 + [2, 2]}
    with pytest.raises(DataError, match="the 3 training examples drawn hold not every class; take more"):
        load(columns, max_train_samples=3)
    with pytest.raises(DataError, match="mine: the 1 training examples drawn have one label; take more"):
        load({"text": texts(50), "label": [0.5, 1.5] * 25}, metric="pearson", max_train_samples=1)
    with pytest.raises(DataError, match="max_train_samples must be positive, but got 0; leave it out to keep all 50"):
        load(columns, max_train_samples=0)


def test_the_fingerprint_knows_every_text_and_label(load: Load) -> None:
    columns = {"text": texts(4), "label": [0, 1, 0, 1]}
    seen = {
        load(columns).fingerprint,
        load(columns | {"label": [0, 1, 1, 1]}).fingerprint,
        load(columns | {"text": [*texts(3), "other"]}).fingerprint,
        load(columns, {"text": texts(2), "label": [0, 1]}).fingerprint,
        load({"sentence1": texts(4), "sentence2": texts(4), "label": [0, 1, 0, 1]}).fingerprint,
    }
    assert len(seen) == 5


# --- known tasks


def write_known(folder: Path, labels: Sequence[Any], *, name: str = "mrpc") -> Path:
    (folder / name).mkdir()
    for part in ("train", "validation"):
        columns = {"sentence1": texts(len(labels)), "sentence2": texts(len(labels)), "label": labels}
        pa.parquet.write_table(pa.table(columns), folder / name / f"{part}.parquet")
    return folder


def test_a_known_task_reads_numbers_and_names_of_its_classes_alike(tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    (tmp_path / "names").mkdir()
    numbers = load_task(TaskSource(name="mrpc", data=write_known(tmp_path / "numbers", [1, 0, 1])))
    # by name "equivalent" comes first, but class 1, of which F1 speaks, it must be
    named = write_known(tmp_path / "names", ["equivalent", "not_equivalent", "equivalent"])
    names = load_task(TaskSource(name="mrpc", data=named))
    assert names.classes == numbers.classes == ("not_equivalent", "equivalent")
    assert names.fingerprint == numbers.fingerprint
    assert load_task(TaskSource(name="mrpc", data=named / "mrpc")).fingerprint == names.fingerprint


@pytest.mark.parametrize("labels", [[0, 1, 2], ["yes", "no", "no"], [1, 2, 1]])
def test_a_known_task_refuses_other_labels(tmp_path: Path, labels: list[Any]) -> None:
    with pytest.raises(
        DataError, match=r"mrpc: the labels are 0 \(not_equivalent\), 1 \(equivalent\), but the training"
    ):
        load_task(TaskSource(name="mrpc", data=write_known(tmp_path, labels)))


def test_a_folder_without_the_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no rte: there should be '.*/rte/train' .* \.tsv, \.csv, \.jsonl"):
        load_task(TaskSource(name="rte", data=tmp_path))
    with pytest.raises(DataError, match="there is no folder '.*/none' to read rte from; .*--data"):
        load_task(TaskSource(name="rte", data=tmp_path / "none"))


def test_a_known_task_with_own_files_is_own_data(load: Load) -> None:
    data = load({"text": texts(3), "label": ["x", "y", "z"]}, name="mrpc")
    assert (data.task.metric, data.classes) == ("accuracy", ("x", "y", "z"))


# --- the hub


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVENKEEL_GLUE_DIR", raising=False)
    with pytest.raises(DataError, match="rte could not be loaded from the hub .*--data .*EVENKEEL_GLUE_DIR"):
        load_task(TaskSource(name="rte"))


def test_an_error_without_words_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise TimeoutError

    monkeypatch.delenv("EVENKEEL_GLUE_DIR", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="TimeoutError: no message"):
        load_task(TaskSource(name="rte"))


def test_the_hub_gives_what_a_folder_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_known(tmp_path, [1, 0, 0, 1])
    columns = {"sentence1": texts(4), "sentence2": texts(4), "label": [1, 0, 0, 1], "idx": [0, 1, 2, 3]}
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["not_equivalent", "equivalent"]),
            "idx": datasets.Value("int32"),
        }
    )
    part = datasets.Dataset.from_dict(columns, features=features)
    test = datasets.Dataset.from_dict(columns | {"label": [-1] * 4}, features=features)
    asked = []

    def load_dataset(*names: str) -> datasets.DatasetDict:
        asked.append(names)
        return datasets.DatasetDict({"train": part, "validation": part, "test": test})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("EVENKEEL_GLUE_DIR", raising=False)
    data = load_task(TaskSource(name="mrpc"))
    assert asked == [("nyu-mll/glue", "mrpc")]
    assert data.test is None  # GLUE's test labels are secret
    assert data.fingerprint == load_task(TaskSource(name="mrpc", data=tmp_path)).fingerprint


# --- the embedded tasks, and the real ones


def test_embedded_tasks_have_a_test_part() -> None:
    data = load_task(TaskSource(name="grammar/acceptability"))
    assert data.classes == ("unacceptable", "acceptable")
    assert data.test is not None
    assert not set(data.test["text"]) & set(data.train["text"])


@pytest.mark.parametrize(
    ("name", "train", "validation", "share", "majority"),
    [("rte", 2490, 277, 0.527, 0.527), ("mrpc", 3668, 408, 0.684, 0.812), ("cola", 8551, 1043, 0.691, 0.0)],
)
def test_the_glue_tasks_are_whole(
    glue_dir: Path, name: str, train: int, validation: int, share: float, majority: float
) -> None:
    data = load_task(TaskSource(name=name, data=glue_dir))
    assert (len(data.train), len(data.validation)) == (train, validation)
    labels = data.validation["label"][:]
    assert majority_score("accuracy", labels) == pytest.approx(share, abs=5e-4)
    assert majority_score(data.task.metric, labels) == pytest.approx(majority, abs=5e-4)


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, glue_dir: Path) -> None:
    monkeypatch.setenv("EVENKEEL_GLUE_DIR", str(glue_dir))
    whole = load_task(TaskSource(name="rte", data=glue_dir))
    assert load_task(TaskSource(name="rte")).fingerprint == whole.fingerprint
