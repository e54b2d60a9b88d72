"""adapt: adapts the backbone to the normal images of a product, into `data/backbone/<product>`."""

from defect_core.adaptation.product import adapt_to_product
from defect_core.data.files import folder_digest
from defect_core.errors import InputError
from defect_core.project.backbones import open_project_backbone
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project


def run(project: Project, product: str) -> None:
    """Run the stage for one product; `adapt_to_product` describes the output folder."""
    params = project.params
    if params.adapt is None:
        raise InputError("params.yaml has no section adapt; expected one to adapt the backbone")
    backbone = open_project_backbone(project)
    examples = [example for example in load_examples(project, product, "train") if example.mask is None]
    if len(examples) < 2:
        raise InputError(f"adapt {product}: {len(examples)} normal training image(s); expected at least 2")
    key = {
        "settings": params.adapt.model_dump(mode="json"),
        "seed": params.seed,
        "backbone": backbone.digest,
        "raw": folder_digest(project.path(f"data/raw/{product}")),
        "train": [example.name for example in examples],
    }
    with project.building(f"data/backbone/{product}", key) as work:
        adapt_to_product(
            backbone,
            lambda: open_project_backbone(project),
            examples,
            params.adapt,
            work,
            project.checkpoints(work),
            params.seed,
        )
