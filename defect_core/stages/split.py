"""split: divides real images into training and test images, into `data/split/<product>.parquet`."""

import logging

from defect_core.data.near_duplicates import across, describe, find_pairs
from defect_core.data.records import record_rows, write_records
from defect_core.data.splits import split_records
from defect_core.project.paths import Project

logger = logging.getLogger(__name__)


def run(project: Project, product: str) -> None:
    """Run the stage for one product."""
    settings = project.params.split
    raw = project.path(f"data/raw/{product}")
    records = record_rows(raw / "records.parquet")
    pairs = find_pairs(records, raw) if settings.near_duplicates != "ignore" else []
    divided = split_records(
        records,
        settings.policy,
        settings.fold,
        settings.min_train,
        settings.max_train,
        settings.train_fraction,
        pairs if settings.near_duplicates == "group" else (),
    )
    for line in describe(across(pairs, divided)):
        logger.warning(line)
    write_records(divided, project.path(f"data/split/{product}.parquet"))
