"""Reading tables of text from files, with every way that they can be wrong said clearly."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from evenkeel.errors import DataError

__all__ = ["SUFFIXES", "find_part", "read_table"]

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")


def find_part(folder: Path, part: str) -> Path | None:
    """Return the file of a part, ``train.tsv`` for example; None if there is none.

    Args:
        folder: where to look.
        part: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        The first of the known suffixes that exists.
    """
    return next((path for suffix in SUFFIXES if (path := folder / f"{part}{suffix}").is_file()), None)


def read_table(path: Path) -> pa.Table:
    """Read a CSV, TSV, JSONL or Parquet file.

    Cells of CSV and TSV files stay text, so that a sentence that reads "NA" or a label "01" is not changed.

    Args:
        path: the file; its suffix says what it is.

    Returns:
        Its table, with at least one row.

    Raises:
        DataError: if the file is missing, empty, not UTF-8, damaged, or of an unknown kind.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"'{path}' ends in '{path.suffix}', which is not read; use one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"there is no file '{path}'; check the name and the folder you started from")
    lines = _lines(path) if path.suffix != ".parquet" else path.stat().st_size
    if lines == 0:
        raise DataError(f"'{path}' is empty; it needs a header row and examples")
    try:
        table = _read(path) if lines > 1 or path.suffix == ".jsonl" else None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read as {path.suffix[1:].upper()}: {error}") from error
    if table is None or table.num_rows == 0:
        raise DataError(f"'{path}' has a header and no examples; add them, or name another file")
    if path.suffix == ".tsv":
        _check_quotes(path, table)
    return table


def _check_quotes(path: Path, table: pa.Table) -> None:
    """Refuse a file that is whole without quoting, and in which quoting joins rows: its marks are part of the text."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    alike = len({line.count("\t") for line in lines}) == 1
    if alike and table.num_rows < len(lines) - 1:
        raise DataError(
            f"'{path}' has {len(lines) - 1} rows, but cells that begin with a quotation mark join some of them, so "
            f"that "
            f"{table.num_rows} would be left; put such cells in quotation marks and write each mark in them twice, as "
            "Python's csv module does, or save the file as CSV, JSONL or Parquet"
        )


def _read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pa.parquet.read_table(path)
    if path.suffix == ".jsonl":
        return pa.json.read_json(path)
    parse = pa.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pa.csv.read_csv(path, parse_options=parse, convert_options=convert)


def _lines(path: Path) -> int:
    """Count the lines that are not blank; find the first that is not UTF-8, which a reader blames on something else."""
    found = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                found += sum(bool(bit.strip()) for bit in line.decode("utf-8").splitlines())
            except UnicodeDecodeError as error:
                raise DataError(
                    f"'{path}' is not UTF-8: line {number} holds the byte 0x{line[error.start]:02x}; save the file "
                    f"as UTF-8"
                ) from error
    return found
