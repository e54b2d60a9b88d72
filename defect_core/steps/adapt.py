"""adapt: the backbone learns a product's good images, into `data/backbone/<product>`, a folder like the original.

`drawn/` holds good images that it then draws from noise, for people to look at.
"""

import json
import shutil

from defect_core.adaptation import adapt, draw_normals, mean_latents
from defect_core.data.records import save_png
from defect_core.errors import InputError
from defect_core.examples import load_examples, open_original
from defect_core.generators.base import derive_seed
from defect_core.generators.composite import is_gray
from defect_core.project import Project, folder_digest

DRAWN = 20


def run(project: Project, product: str) -> None:
    params = project.params
    backbone = open_original(project)
    good = [example for example in load_examples(project, product, "train") if example.mask is None]
    if len(good) < 2:
        raise InputError(f"adapt {product}: {len(good)} good training image(s); expected at least 2")
    key = {
        "settings": params.adapt.model_dump(mode="json"),
        "seed": params.seed,
        "backbone": backbone.digest,
        "raw": folder_digest(project.path(f"data/raw/{product}")),
        "train": [example.name for example in good],
    }
    with project.building(f"data/backbone/{product}", key) as work:
        checkpoints = project.state / "checkpoints" / work.parent.name / work.name
        curve = adapt(backbone, good, params.adapt, checkpoints, derive_seed(params.seed, product, "", "adapt", 0))
        backbone.save(work)
        seeds = [derive_seed(params.seed, product, "", "drawn", index) for index in range(DRAWN)]
        drawn = draw_normals(
            backbone,
            product,
            seeds,
            guide=open_original(project),
            mean=mean_latents(backbone, good),
            gray=all(is_gray(example.image) for example in good),
        )
        for index, image in enumerate(drawn):
            save_png(image, work / f"drawn/{index:02d}.png")
        (work / "adaptation.json").write_text(json.dumps(curve, indent=2) + "\n")
    shutil.rmtree(project.state / "checkpoints" / work.parent.name, ignore_errors=True)
