"""adapt: the backbone learns a product's good images, into `data/backbone/<product>`, a folder like the original.

`drawn/` holds good images that it then draws from noise, for people to look at; `drawing.json` how they were drawn:
the way that comes nearest to the good training images, for what helps an object's outline harms a texture.
`grain.safetensors` is the camera's grain, added where it brings them nearer (`defect_core.generators.grain`).
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from defect_core.adaptation import PLAIN_WAY, Way, adapt, draw_normals, mean_latents, show_whole
from defect_core.backbones import Backbone
from defect_core.data.records import save_png
from defect_core.errors import InputError
from defect_core.examples import load_examples, open_original
from defect_core.generators.base import Example, Image, derive_seed
from defect_core.generators.composite import is_gray
from defect_core.generators.grain import add_grain, missing_grain
from defect_core.metrics.features import Lite0Features
from defect_core.metrics.frechet import frechet_distance
from defect_core.project import Project, folder_digest

GRAIN = "grain.safetensors"
DISTANCES = "distance", "distance_with_grain"
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
        tries = _try_ways(backbone, good, params.seed, alike)
        best = min(tries, key=lambda each: min(each.distances))
        tried = [{**each.way._asdict(), **dict(zip(DISTANCES, each.distances, strict=True))} for each in tries]
        (work / "drawing.json").write_text(json.dumps({**best.way._asdict(), "tried": tried}, indent=2) + "\n")
        if best.distances[1] < best.distances[0]:
            save_file({"kernel": best.grain}, work / GRAIN)
        seeds = [derive_seed(params.seed, product, "", "drawn", index) for index in range(DRAWN)]
        drawn = with_grain(draw_normals(backbone, product, seeds, way=best.way, **alike), seeds, work)
        for index, image in enumerate(drawn):
            save_png(image, work / f"drawn/{index:02d}.png")
        (work / "adaptation.json").write_text(json.dumps(curve, indent=2) + "\n")
    shutil.rmtree(project.state / "checkpoints" / work.parent.name, ignore_errors=True)


def chosen_way(folder: Path) -> Way:
    """The way that the stage chose for the backbone in this folder."""
    described = json.loads((folder / "drawing.json").read_text())
    return Way(*(described[field] for field in Way._fields))


def with_grain(images: Sequence[Image], seeds: Sequence[int], folder: Path) -> Sequence[Image]:
    """Drawn images under the grain that the stage chose for the backbone in this folder; if none, as they are."""
    if not (folder / GRAIN).is_file():
        return images
    return add_grain(images, load_file(folder / GRAIN)["kernel"], seeds)


class _Try(NamedTuple):
    way: Way
    grain: Tensor
    distances: tuple[float, float]  # as drawn, and with that grain


def _try_ways(backbone: Backbone, good: Sequence[Example], seed: int, alike: dict[str, Any]) -> list[_Try]:
    """Fréchet distances (Lite0 features, whole images at the backbone's resolution) of a few drawn to the good training
    images, for every way; each draws the same seeds.
    """
    network = Lite0Features()
    real = show_whole(good, COMPARED, backbone.resolution)
    wanted = network.extract(np.stack(real)).pooled
    seeds = [derive_seed(seed, good[0].product, "", "tried", index) for index in range(TRIED)]

    def distance(images: Sequence[Image]) -> float:
        return round(frechet_distance(network.extract(np.stack(images)).pooled, wanted), 1)

    tries = []
    for way in WAYS:
        drawn = draw_normals(backbone, good[0].product, seeds, way=way, **alike)
        grain = missing_grain(real, drawn)
        tries.append(_Try(way, grain, (distance(drawn), distance(add_grain(drawn, grain, seeds)))))
    return tries
