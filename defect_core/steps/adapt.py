"""adapt: the backbone learns a product's good images, into `data/backbone/<product>`, a folder like the original.

`drawn/` holds good images that it then draws from noise, for people to look at; `drawing.json` how they were drawn:
the way that comes nearest to the good training images, for what helps an object's outline harms a texture's grain.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.adaptation import PLAIN_WAY, Way, adapt, draw_normals, mean_latents, show_whole
from defect_core.backbones import Backbone
from defect_core.data.records import save_png
from defect_core.errors import InputError
from defect_core.examples import load_examples, open_original
from defect_core.generators.base import Example, Image, derive_seed
from defect_core.generators.composite import is_gray
from defect_core.metrics.features import Lite0Features
from defect_core.metrics.frechet import frechet_distance
from defect_core.project import Project, folder_digest

DRAWN, TRIED, COMPARED = 20, 50, 256
WAYS = (PLAIN_WAY, Way(1.0, 0.4), Way(2.5, 0.0), Way(2.5, 0.4))


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
        alike = {
            "guide": open_original(project),
            "mean": mean_latents(backbone, good),
            "gray": all(is_gray(example.image) for example in good),
        }
        distances = _distances(backbone, good, params.seed, alike)
        way = min(distances, key=lambda way: distances[way])
        tried = [{**way._asdict(), "distance": distance} for way, distance in distances.items()]
        (work / "drawing.json").write_text(json.dumps({**way._asdict(), "tried": tried}, indent=2) + "\n")
        seeds = [derive_seed(params.seed, product, "", "drawn", index) for index in range(DRAWN)]
        drawn = draw_normals(backbone, product, seeds, way=way, **alike)
        for index, image in enumerate(drawn):
            save_png(image, work / f"drawn/{index:02d}.png")
        (work / "adaptation.json").write_text(json.dumps(curve, indent=2) + "\n")
    shutil.rmtree(project.state / "checkpoints" / work.parent.name, ignore_errors=True)


def chosen_way(folder: Path) -> Way:
    """The way that the stage chose for the backbone in this folder."""
    described = json.loads((folder / "drawing.json").read_text())
    return Way(*(described[field] for field in Way._fields))


def _distances(backbone: Backbone, good: Sequence[Example], seed: int, alike: dict[str, Any]) -> dict[Way, float]:
    """Fréchet distance (Lite0 features, whole images at the backbone's resolution) of a few drawn to the good training
    images, for every way; each draws the same seeds.
    """
    network = Lite0Features()

    def features(images: Sequence[Image]) -> NDArray[np.float32]:
        return network.extract(np.stack(images)).pooled

    real = features(show_whole(good, COMPARED, backbone.resolution))
    seeds = [derive_seed(seed, good[0].product, "", "tried", index) for index in range(TRIED)]
    return {
        way: round(
            frechet_distance(features(draw_normals(backbone, good[0].product, seeds, way=way, **alike)), real), 1
        )
        for way in WAYS
    }
