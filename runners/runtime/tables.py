"""Read and write CSV tables."""

from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd


def read_frame(file: Path | StringIO) -> pd.DataFrame:
    """A CSV file; every cell is text."""
    return pd.read_csv(file, dtype=str, keep_default_na=False, index_col=False)


def read_table(file: Path | StringIO) -> list[dict[str, str]]:
    """The rows of a CSV file by column; every cell is text."""
    rows: list[dict[str, str]] = read_frame(file).to_dict("records")
    return rows


def csv_text(columns: Sequence[str], rows: Iterable[Any]) -> str:
    """Rows (mappings or tuples) as the text of a CSV file. None is an empty cell."""
    table = pd.DataFrame(list(rows), columns=list(columns), dtype=object)
    return str(table.to_csv(index=False, lineterminator="\n"))
