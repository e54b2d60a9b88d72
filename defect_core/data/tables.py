"""Parquet tables with a fixed schema, read as pandas frames or as plain rows."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defect_core.data.files import atomic_path
from defect_core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Schema = dict[str, type]
"""Column names, in their order, and their types: str, int, float or bool."""

_ARROW_TYPES = {str: "string", int: "int64", float: "float64", bool: "bool"}
_FRAME_TYPES = {str: "object", int: "int64", float: "float64", bool: "bool"}


def write_table(content: "Sequence[Any] | pd.DataFrame", schema: Schema, path: Path) -> None:
    """Write a parquet table atomically; the same rows in the same order give the same bytes.

    Args:
        content: dataclass instances with one field per column, or a frame with exactly the columns of the schema.
        schema: columns of the table.
        path: the file to write; missing parent folders are created.

    Raises:
        ValueError: a frame with other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [asdict(row) for row in content] if isinstance(content, Sequence) else frame_rows(content, schema)
    arrow_schema = pa.schema([(name, pa.type_for_alias(_ARROW_TYPES[kind])) for name, kind in schema.items()])
    table = pa.Table.from_pylist([{name: row[name] for name in schema} for row in rows], schema=arrow_schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_rows(path: Path, schema: Schema, optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of a parquet table as dictionaries; a missing value is None.

    Args:
        path: the file.
        schema: columns of the table.
        optional: text columns that a file of an earlier version may lack; they are empty then.

    Raises:
        InputError: the file is missing, is not parquet, or does not fit the schema.
    """
    return _read_table(path, schema, optional).to_pylist()


def read_frame(path: Path, schema: Schema, optional: Sequence[str] = ()) -> "pd.DataFrame":
    """Return a parquet table as a frame with the column order of the schema.

    Text columns have the dtype object and None for a missing value. A missing number is NaN.

    Args:
        path: the file.
        schema: columns of the table.
        optional: as for `read_rows`.

    Raises:
        InputError: as `read_rows`.
    """
    import pandas as pd

    table = _read_table(path, schema, optional)
    return pd.DataFrame(
        {name: pd.Series(table[name].to_pylist(), dtype=_FRAME_TYPES[kind]) for name, kind in schema.items()}
    )


def frame_rows(frame: "pd.DataFrame", schema: Schema) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries; a missing value (None or NaN) is None.

    Raises:
        ValueError: the frame has other columns than the schema.
    """
    if set(frame.columns) != set(schema):
        raise ValueError(
            f"the frame has the columns {', '.join(map(str, frame.columns))}; expected {', '.join(schema)}"
        )
    columns = []
    for name in schema:
        values, missing = frame[name].tolist(), frame[name].isna().tolist()
        columns.append([None if absent else value for value, absent in zip(values, missing, strict=True)])
    return [dict(zip(schema, row, strict=True)) for row in zip(*columns, strict=True)]


def _read_table(path: Path, schema: Schema, optional: Sequence[str]) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise InputError(f"{path}: not found; expected a parquet table") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({' '.join(str(error).split())})") from None
    expected = ", ".join(schema)
    for name in optional:
        if name not in table.column_names:
            table = table.append_column(name, pa.array([""] * len(table), pa.string()))
    for name, kind in schema.items():
        if name not in table.column_names:
            raise InputError(f"{path}: column {name!r} is missing; expected {expected}")
        actual = str(table.schema.field(name).type).removeprefix("large_").replace("double", "float64")
        if actual != _ARROW_TYPES[kind]:
            raise InputError(f"{path}: column {name!r} is {actual}; expected {_ARROW_TYPES[kind]}")
        if kind in (int, bool) and table[name].null_count:
            raise InputError(f"{path}: column {name!r} has missing values; expected a value in every row")
    for name in table.column_names:
        if name not in schema:
            raise InputError(f"{path}: unknown column {name!r}; expected {expected}")
    return table.select(list(schema))
