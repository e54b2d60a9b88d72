"""split: divides real images into training and test images, into `data/split/<product>.parquet`."""

from defect_core.data.records import record_rows, write_records
from defect_core.data.splits import check_disjoint, split_records
from defect_core.project.paths import Project


def run(project: Project, product: str) -> None:
    """Run the stage for one product."""
    settings = project.params.split
    records = record_rows(project.path(f"data/raw/{product}/records.parquet"))
    divided = split_records(records, settings.policy, settings.fold, settings.min_train, settings.max_train)
    check_disjoint(divided)
    write_records(divided, project.path(f"data/split/{product}.parquet"))
