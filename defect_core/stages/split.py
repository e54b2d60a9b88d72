"""split: which records train and which test, into `data/split/<product>.parquet`."""

import os

from defect_core.data.records import read_records, write_records
from defect_core.data.splits import assert_disjoint, split_records
from defect_core.project.paths import Project


def run(project: Project, product: str) -> None:
    settings = project.params.split
    records = read_records(project.path(f"data/raw/{product}/records.parquet"))
    divided = split_records(records, settings.policy, settings.fold, settings.min_train, settings.max_train)
    assert_disjoint(divided)
    target = project.path(f"data/split/{product}.parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    write_records(divided, fresh)
    os.replace(fresh, target)
