"""ingest: reads and checks real images, into `data/raw/<product>`."""

from defect_core.data.layouts.ingest import ingest_source
from defect_core.data.layouts.remote import open_source
from defect_core.project.paths import Project


def run(project: Project, product: str) -> None:
    """Run the stage for one product."""
    params = project.params
    source = params.sources[product]
    with open_source(source.path, project.source_path(product), project.state) as folder:
        ingest_source(
            folder,
            product,
            project.path(f"data/raw/{product}"),
            layout=source.layout,
            options=source.options,
            empty_masks=source.empty_masks,
            min_per_defect=params.ingest.min_per_defect,
            seed=params.seed,
            missing_masks=source.missing_masks,
        )
