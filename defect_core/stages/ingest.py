"""ingest: real images, checked, into `data/raw/<product>`."""

from defect_core.data.layouts import ingest, opened
from defect_core.project.paths import Project


def run(project: Project, product: str) -> None:
    params = project.params
    source = params.sources[product]
    with opened(source.path, project.source_path(product), project.state) as folder:
        ingest(
            folder,
            product,
            project.path(f"data/raw/{product}"),
            layout=source.layout,
            options=source.options,
            empty_masks=source.empty_masks,
            min_per_defect=params.ingest.min_per_defect,
            seed=params.seed,
        )
