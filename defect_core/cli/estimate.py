"""How long `defectory run` takes for a product: recorded times of this machine, else measured constants.

The constants are from docs/research/measurements.md: preset `laptop`, one product with five defect types, two idle
cores of a Xeon.
"""

import os
from importlib.resources import files

import yaml

from defect_core.generators.registry import generator_capabilities
from defect_core.graph.instances import active_stages
from defect_core.graph.local import read_cost
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.params import Params
from defect_core.project.paths import Project

PRESETS = ("demo", "laptop")
UNMEASURED = "preset full: hours on a GPU, not measured"
_CORES = 2
_MAX_CORES = 8  # more cores help little at these image sizes
_IMAGES_PER_SECOND = 75.0  # read, checked and copied by `ingest` on one core
_ADAPT_STEP, _FINETUNE_STEP, _SEGMENT_STEP = 0.69, 0.75, 0.21  # seconds
_SEGMENT_SIDE = 128  # pixels, of the measured segmenter
_PAIR, _SCORED_PAIR = 0.17, 0.7  # seconds
_START = 4.0  # seconds that a stage needs to start


def estimate_seconds(params: Params, images: int, defect_types: int, train_defects: int) -> dict[str, float]:
    """Return the estimated seconds of each stage for one product on this machine, without records of earlier runs.

    Args:
        params: the settings.
        images: number of real images.
        defect_types: number of defect types.
        train_defects: number of defect images that train.
    """
    speed = min(os.cpu_count() or 1, _MAX_CORES) / _CORES
    mean = train_defects / max(1, defect_types)
    pairs = defect_types * params.synthesize.target_count(max(1, round(mean)))
    generators = params.generators
    steps = sum(_steps(params, name) for name in generators)
    segment = params.segment
    side = segment.image_size if isinstance(segment.image_size, int) else _SEGMENT_SIDE
    trained = len(segment.seeds) * len(params.arms) * segment.steps
    adapt = params.adapt
    work = {
        "ingest": images / _IMAGES_PER_SECOND,
        "split": 0.0,
        "adapt": 0.0 if adapt is None else (adapt.steps + adapt.normal_sampler_steps) * _ADAPT_STEP,
        "finetune": steps * _FINETUNE_STEP,
        "synthesize": len(generators) * pairs * _PAIR,
        "score": len(generators) * pairs * _SCORED_PAIR,
        "segment": trained * _SEGMENT_STEP * (side / _SEGMENT_SIDE) ** 2,
    }
    if params.release is not None:
        work["release"] = work["segment"] / max(1, len(params.arms))
    active = {stage.name for stage in active_stages(params)}
    counts = {"finetune": len(generators), "synthesize": len(generators), "score": len(generators)}
    return {
        name: seconds / speed + _START * counts.get(name, len(params.arms) if name == "segment" else 1)
        for name, seconds in work.items()
        if name in active
    }


def estimate_times(project: Project, images: int, defect_types: int, train_defects: int) -> dict[str, float]:
    """Return the estimated seconds of `defectory run` for one product: of this project, and of each preset."""
    own = estimate_seconds(project.params, images, defect_types, train_defects)
    times = {"params.yaml": sum(_recorded(project, name) or seconds for name, seconds in own.items())}
    for preset in PRESETS:
        text = (files("defect_core.cli") / "templates/presets" / f"{preset}.yaml").read_text(encoding="utf-8")
        params = Params.model_validate(yaml.safe_load(text))
        times[f"preset {preset}"] = sum(estimate_seconds(params, images, defect_types, train_defects).values())
    return times


def describe_times(times: dict[str, float]) -> str:
    """Return one line with the estimated times."""
    parts = [f"{name} {format_duration(seconds)}" for name, seconds in times.items()]
    return f"{', '.join(parts)}; {UNMEASURED}"


def format_duration(seconds: float) -> str:
    """Return a duration as people say it: seconds, minutes or hours, rounded."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _steps(params: Params, generator: str) -> int:
    if not generator_capabilities(generator).uses_backbone:
        return 0
    settings = params.generator_settings(generator)
    return int(getattr(settings, "steps", 0)) + int(getattr(settings, "mask_steps", 0) or 0)


def _recorded(project: Project, stage: str) -> float | None:
    """Return the mean recorded seconds of a stage per product of this project on this machine; None without records."""
    params = project.params
    axes = {"segment": params.arms or (BASELINE_ARM,)}.get(stage, params.generators)
    per_product = []
    for product in params.products:
        keys = [product] if stage in ("ingest", "split", "adapt", "release") else [f"{product}-{axis}" for axis in axes]
        costs = [read_cost(project, f"{stage}@{key}") for key in keys]
        if all(cost is not None for cost in costs):
            per_product.append(sum(float(cost["seconds"]) for cost in costs if cost is not None))
    return sum(per_product) / len(per_product) if per_product else None
