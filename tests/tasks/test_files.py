from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.errors import DataError
from evenkeel.tasks import TaskSource, load_task
from evenkeel.tasks._files import read_table

AWKWARD = [
    ("a plain sentence", "no"),
    ('she said "no", twice', "yes"),
    ("two\nlines, and a\ttab", "no"),
    ("NA", "None"),
    ("null", "None"),
    ("1.0", "yes"),
    ("été — 日本語 🙂", "no"),
    ("  spaces around ", "yes"),
]


def as_csv(path: Path, table: list[tuple[str, str]], *, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("text", "label"), *table])


def as_tsv(path: Path, table: list[tuple[str, str]]) -> None:
    as_csv(path, table, delimiter="\t")


def as_jsonl(path: Path, table: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in table]
    path.write_text("\n".join(lines), encoding="utf-8")


def as_parquet(path: Path, table: list[tuple[str, str]]) -> None:
    texts, labels = zip(*table, strict=True)
    pa.parquet.write_table(pa.table({"text": texts, "label": labels}), path)


WRITERS: dict[str, Callable[[Path, list[tuple[str, str]]], None]] = {
    "csv": as_csv,
    "tsv": as_tsv,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
}


def load(folder: Path, suffix: str, table: list[tuple[str, str]]) -> tuple[str, list[str], list[int]]:
    paths = [folder / f"{part}.{suffix}" for part in ("train", "validation")]
    for path in paths:
        WRITERS[suffix](path, table)
    data = load_task(TaskSource(name="mine", train=paths[0], validation=paths[1]))
    return data.fingerprint, data.validation["text"][:], data.validation["label"][:]


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_data(suffix: str, tmp_path: Path) -> None:
    fingerprint, texts, labels = load(tmp_path, suffix, AWKWARD)
    assert texts == [text for text, _ in AWKWARD]
    assert labels == [1, 2, 1, 0, 0, 2, 1, 2]  # None, no, yes
    assert fingerprint == load(tmp_path, "csv", AWKWARD)[0]


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS, min_size=2, max_size=6))
def test_any_text_survives_any_format(tmp_path: Path, texts: list[str]) -> None:
    table = [(text, "ab"[number % 2]) for number, text in enumerate(texts)]
    loaded = [load(tmp_path, suffix, table) for suffix in ("csv", "tsv", "parquet")]
    assert loaded[0][1] == texts
    assert loaded[0] == loaded[1] == loaded[2]


def test_numbers_and_text_make_the_same_labels(tmp_path: Path) -> None:
    table = [("a", "0"), ("b", "1"), ("c", "0")]
    written = load(tmp_path, "csv", table)
    for part in ("train", "validation"):
        lines = [json.dumps({"text": text, "label": int(label)}) for text, label in table]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    paths = [tmp_path / f"{part}.jsonl" for part in ("train", "validation")]
    assert load_task(TaskSource(name="mine", train=paths[0], validation=paths[1])).fingerprint == written[0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_and_other_line_ends_do_not_matter(tmp_path: Path, mark: str, end: str) -> None:
    table = [("a", "x"), ("b", "y")]
    expected = load(tmp_path, "csv", table)
    for part in ("train", "validation"):
        (tmp_path / f"{part}.csv").write_text(
            mark + end.join(["text,label", "a,x", "b,y"]), encoding="utf-8", newline=""
        )
    data = load_task(TaskSource(name="mine", train=tmp_path / "train.csv", validation=tmp_path / "validation.csv"))
    assert data.fingerprint == expected[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.xlsx", b"x", r"ends in '.xlsx', which is not read; use one of .tsv, .csv, .jsonl, .parquet"),
        ("train.csv", None, "there is no file '.*train.csv'; check the name"),
        ("train.csv", b"", "is empty; it needs a header row and examples"),
        ("train.csv", b"text,label\n", "has a header and no examples"),
        ("train.tsv", b"text\tlabel", "has a header and no examples"),
        ("train.csv", b"\n\n", "is empty"),
        ("train.csv", "text,label\nété,1\n".encode("latin-1"), "not UTF-8: line 2 holds the byte 0xe9; save the file"),
        ("train.csv", "text,label\nwell,1\n".encode("utf-16"), "not UTF-8: line 1 holds the byte 0xff"),
        ("train.csv", b"text,label\na,1\nb,2,3\n", "cannot be read as CSV: .*Expected 2 columns, got 3"),
        (
            "train.csv",
            b'text,label\n"a,1\nb,2\n',
            "cannot be read as CSV: .*Expected 2 columns",
        ),  # a quote never closed
        ("train.jsonl", b'{"text": "a", "label": 1}\n{"text": ', "cannot be read as JSONL: JSON parse error"),
        (
            "train.jsonl",
            b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}',
            "cannot be read as JSONL: .*changed",
        ),
        ("train.parquet", b"PAR1 this is none", "cannot be read as PARQUET"),
        ("train.parquet", b"", "is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    as_csv(tmp_path / "validation.csv", AWKWARD)
    with pytest.raises(DataError, match=f"(?s){said}"):
        load_task(TaskSource(name="mine", train=tmp_path / name, validation=tmp_path / "validation.csv"))


def test_quotation_marks_that_join_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text('text\tlabel\na\t0\n"He said hi\t1\nHe left"\t0\nb\t1\n', encoding="utf-8")
    with pytest.raises(DataError, match="has 4 rows, but cells that begin with a quotation mark .* 3 would be left"):
        read_table(path)
