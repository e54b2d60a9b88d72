"""Real images of a project: records of a split, and examples in memory."""

from defect_core.data.records import Record, load_image, load_mask, record_rows
from defect_core.generators.base import Example
from defect_core.project.paths import Project


def split_records_of(project: Project, product: str, split: str) -> list[Record]:
    """Return the records of a product on one side of its split (`train` or `test`)."""
    records = record_rows(project.path(f"data/split/{product}.parquet"))
    return [record for record in records if record.split == split]


def load_examples(project: Project, product: str, split: str) -> list[Example]:
    """Return all images on one side of the split with their masks, in the order of the records."""
    return [load_example(project, record) for record in split_records_of(project, product, split)]


def load_example(project: Project, record: Record) -> Example:
    """Return the image and mask of one record."""
    raw = project.path(f"data/raw/{record.product}")
    mask = None if record.mask is None else load_mask(raw / record.mask)
    return Example(record.product, record.defect, load_image(raw / record.image), mask, record.image)
