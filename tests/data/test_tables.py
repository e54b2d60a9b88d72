"""Manifest and records as parquet files, pandas frames and rows."""

import hashlib
import subprocess
import sys
from dataclasses import fields, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from defect_core.data.manifest import MANIFEST_COLUMNS, ManifestRow, manifest_rows, read_manifest, write_manifest
from defect_core.data.records import Record, read_records, record_rows, write_records
from defect_core.errors import InputError

RECORDS = [
    Record("p", "good", "good/9.png", None, "train", "a" * 64, 30, 20),
    Record("p", "cut", "cut/1.jpg", "masks/cut/1.png", "", "b" * 64, 31, 21),
]
ACCEPTED = ManifestRow(
    "s", "p", "d", "i", "m", "g", 2**63 - 1, "si", None, "", 0.5, 9, None, True, None, "x", "y", nearest_distance=1 / 3
)
LATER = ["source", "label", "group", "depth"]  # columns of records that version 0.1.0 did not write
ROWS = [ACCEPTED, replace(ACCEPTED, sample_id="t", image=None, accepted=False, reject_reason="é", strength=None)]


def test_records_are_the_same_as_rows_and_as_a_frame(tmp_path):
    write_records(RECORDS, tmp_path / "a.parquet")
    frame = read_records(tmp_path / "a.parquet")
    assert list(frame.columns) == [field.name for field in fields(Record)]
    assert [str(kind) for kind in frame.dtypes] == ["object"] * 6 + ["int64"] * 2 + ["object"] * 4
    assert frame["mask"].tolist() == [None, "masks/cut/1.png"] and frame.width.sum() == 61
    assert record_rows(tmp_path / "a.parquet") == record_rows(frame) == RECORDS
    assert record_rows(frame[frame.split == "train"]) == RECORDS[:1]


def test_manifests_are_the_same_as_rows_and_as_a_frame(tmp_path):
    write_manifest(ROWS, tmp_path / "a.parquet")
    frame = read_manifest(tmp_path / "a.parquet")
    assert tuple(frame.columns) == MANIFEST_COLUMNS and len(MANIFEST_COLUMNS) == 23
    assert str(frame.accepted.dtype) == "bool" and str(frame.seed.dtype) == "int64"
    assert {str(frame[name].dtype) for name in ("strength", "quality", "nearest_distance")} == {"float64"}
    assert frame["image"].tolist() == ["i", None] and frame.strength.isna().tolist() == [False, True]
    assert manifest_rows(tmp_path / "a.parquet") == manifest_rows(frame) == ROWS
    assert manifest_rows(frame[frame.accepted]) == ROWS[:1]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_frame_and_its_rows_give_the_same_bytes(tmp_path, count):
    for name, write, read, rows in (
        ("r", write_records, read_records, RECORDS),
        ("m", write_manifest, read_manifest, ROWS),
    ):
        write(rows[:count], tmp_path / f"{name}1.parquet")
        write(read(tmp_path / f"{name}1.parquet"), tmp_path / f"{name}2.parquet")
        assert (tmp_path / f"{name}1.parquet").read_bytes() == (tmp_path / f"{name}2.parquet").read_bytes()


def test_values_and_types_on_disk_are_fixed(tmp_path):
    """The digests were taken of the values and types that version 0.1.0 wrote; later columns of records are last."""
    write_records(RECORDS, tmp_path / "r.parquet")
    write_manifest(ROWS, tmp_path / "m.parquet")
    digests = []
    for name in ("r", "m"):
        table = pq.read_table(tmp_path / f"{name}.parquet")
        table = table.drop_columns(LATER) if name == "r" else table
        content = f"{[(field.name, str(field.type)) for field in table.schema]} {table.to_pylist()}"
        digests.append(hashlib.sha256(content.encode()).hexdigest()[:16])
    assert digests == ["0340a7838ce48689", "9c02b6e4434bcdce"]


def test_records_of_an_earlier_version_can_be_read(tmp_path):
    write_records(RECORDS, tmp_path / "a.parquet")
    pq.write_table(pq.read_table(tmp_path / "a.parquet").drop_columns(LATER), tmp_path / "old.parquet")
    assert record_rows(tmp_path / "old.parquet") == RECORDS
    assert read_records(tmp_path / "old.parquet").equals(read_records(tmp_path / "a.parquet"))


def test_frames_with_other_columns_are_refused(tmp_path):
    write_records(RECORDS, tmp_path / "a.parquet")
    frame = read_records(tmp_path / "a.parquet")
    for wrong in (frame.drop(columns="mask"), frame.assign(more=1)):
        with pytest.raises(ValueError, match="expected product, defect, image"):
            write_records(wrong, tmp_path / "b.parquet")
    assert not (tmp_path / "b.parquet").exists()


def test_files_that_are_no_such_table_are_refused(tmp_path):
    path = tmp_path / "manifest.parquet"
    write_manifest(ROWS, path)
    for read in (read_records, record_rows):
        with pytest.raises(InputError, match=r"manifest\.parquet: column 'split' is missing"):
            read(path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"x\.parquet: not a readable parquet"):
        read_manifest(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"none\.parquet: not found"):
        manifest_rows(tmp_path / "none.parquet")


def test_column_types_are_checked(tmp_path):
    path = tmp_path / "a.parquet"
    write_records(RECORDS, path)
    table = pq.read_table(path)
    pq.write_table(table.set_column(6, "width", pa.array(["30", "31"])), path)
    with pytest.raises(InputError, match="column 'width' is string; expected int64"):
        read_records(path)
    pq.write_table(table.set_column(6, "width", pa.array([30, None])), path)
    with pytest.raises(InputError, match="column 'width' has missing values"):
        read_records(path)
    pq.write_table(table.append_column("more", pa.array([1, 2])), path)
    with pytest.raises(InputError, match="unknown column 'more'"):
        read_records(path)


def test_importing_and_reading_rows_does_not_import_pandas(tmp_path):
    write_manifest(ROWS, tmp_path / "a.parquet")
    code = (
        "import sys; from pathlib import Path; from defect_core.data.manifest import manifest_rows;"
        f"assert len(manifest_rows(Path({str(tmp_path / 'a.parquet')!r}))) == 2;"
        "assert not {'pandas', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
