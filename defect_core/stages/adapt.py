"""adapt: the backbone learns a product's good images, into `data/backbone/<product>`, a folder like the original.

`drawn/` holds good images that it then draws from noise, for people to look at; `drawing.json` how they were drawn:
the way that comes nearest to the good training images, for what helps an object's outline harms a texture.
`grain.safetensors` is the camera's grain, added where it brings them nearer (`defect_core.adaptation.sensor_noise`);
`drawing.safetensors` the network that draws them, where it has learned more than the generators' (`drawing_steps`).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from defect_core.adaptation.adapt import adapt
from defect_core.adaptation.normal_sampler import GRAIN, PLAIN_SAMPLING, WEIGHTS, NormalSampler, SamplerConfig
from defect_core.adaptation.sensor_noise import estimate_sensor_noise
from defect_core.data.records import save_png
from defect_core.errors import InputError
from defect_core.generators.base import Image, derive_seed
from defect_core.metrics.features import Lite0Features
from defect_core.metrics.frechet import frechet_distance
from defect_core.project.loading import load_examples, open_original
from defect_core.project.paths import Project, folder_digest

DISTANCES = "distance", "distance_with_grain"
DRAWN, TRIED = 20, 50
WAYS = (PLAIN_SAMPLING, SamplerConfig(1.6, 0.4, 1.06))  # a texture's, an object's


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
        seed = derive_seed(params.seed, product, "", "adapt", 0)
        curve = adapt(backbone, good, params.adapt, checkpoints, seed)
        (work / "adaptation.json").write_text(json.dumps(curve, indent=2) + "\n")
        backbone.save(work)
        if params.adapt.drawing_steps:
            curve = adapt(backbone, good, params.adapt, checkpoints / "drawing", seed, drawing=True)
            (work / "drawing_adaptation.json").write_text(json.dumps(curve, indent=2) + "\n")
            state = backbone.denoiser.state_dict()
            save_file({name: value.half().cpu().contiguous() for name, value in state.items()}, work / WEIGHTS)
        drawer = _best_way(NormalSampler.of(backbone, open_original(project), good), work, params.seed)
        seeds = [derive_seed(params.seed, product, "", "drawn", index) for index in range(DRAWN)]
        for index, image in enumerate(drawer.draw(seeds)):
            save_png(image, work / f"drawn/{index:02d}.png")
    shutil.rmtree(project.state / "checkpoints" / work.parent.name, ignore_errors=True)


def _best_way(plain: NormalSampler, work: Path, seed: int) -> NormalSampler:
    """The drawer whose few trial images come nearest to the real ones: Fréchet distances (Lite0 features), for every
    way with and without grain; each draws the same seeds. What was found goes into the folder.
    """
    network = Lite0Features()
    wanted = network.extract(np.stack(plain.real)).pooled
    seeds = [derive_seed(seed, plain.product, "", "tried", index) for index in range(TRIED)]

    def distance(images: Sequence[Image]) -> float:
        return round(frechet_distance(network.extract(np.stack(images)).pooled, wanted), 1)

    tried, found = [], {}
    for way in WAYS:
        clear = replace(plain, way=way)
        images = clear.clear(seeds)
        grained = replace(clear, grain=estimate_sensor_noise(plain.real, images))
        distances = distance(images), distance(grained.grained(images, seeds))
        tried.append({**way._asdict(), **dict(zip(DISTANCES, distances, strict=True))})
        found |= {distances[1]: grained, distances[0]: clear}
    best = found[min(found)]
    (work / "drawing.json").write_text(json.dumps({**best.way._asdict(), "tried": tried}, indent=2) + "\n")
    if best.grain is not None:
        save_file({"kernel": best.grain}, work / GRAIN)
    return best
