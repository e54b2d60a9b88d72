"""`defectory preview`: crop-paste pairs of every defect type as zoomed crops, within a minute, without any stage."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from defect_core.cli.estimate import estimate_times
from defect_core.cli.sheet import write_sheet
from defect_core.cli.source_examples import (
    SourceSample,
    load_raw_examples,
    load_source_examples,
    open_product_source,
)
from defect_core.data.placement_settings import rules_of
from defect_core.data.records import record_rows
from defect_core.errors import InputError
from defect_core.generators.base import Example
from defect_core.generators.crop_paste.config import CropPasteConfig
from defect_core.generators.crop_paste.generator import CropPaste
from defect_core.project.paths import Project
from defect_core.synthesis.requests import SynthesisPlan, make_request

GENERATOR = "crop-paste"
_SECONDS = 50.0
_TRAIN_FRACTION = {"half": 0.5, "two_fold": 0.5}  # of the other policies: a third
_NORMALS, _EXAMPLES, _SHOWN_EXAMPLES = 12, 6, 6


@dataclass(frozen=True)
class Preview:
    """What `preview_product` made.

    Attributes:
        sheet: path of the picture.
        pairs: number of pairs by defect type.
        seconds: estimated seconds of `defectory run` by preset.
        is_complete: False if the time limit was reached.
    """

    sheet: Path
    pairs: dict[str, int]
    seconds: dict[str, float]
    is_complete: bool


def preview_product(project: Project, name: str, per_defect: int = 12, limit: float = _SECONDS) -> Preview:
    """Generate crop-paste pairs of a product, and write a picture of real examples and pairs.

    The images are those of `data/raw` if the product is ingested, else some of the source itself.

    Args:
        project: the project.
        name: a product of params.yaml.
        per_defect: pairs per defect type.
        limit: seconds after which no further pair is begun.

    Raises:
        InputError: the product is unknown, or has no normal images or no defect examples that can be read.
    """
    end = time.monotonic() + limit
    if name not in project.params.products:
        known = ", ".join(project.params.products) or "none yet; `defectory add-product` adds one"
        raise InputError(f"product {name!r} is not in params.yaml; expected one of {known}")
    sample = _load_sample(project, name)
    examples = sample.examples
    defects = sorted({example.defect for example in examples if example.mask is not None})
    pairs: dict[str, list[Example]] = {defect: [] for defect in defects}
    for index in range(per_defect):  # One of each type in turn, so that a time limit leaves some of every type.
        for defect in defects:
            if time.monotonic() < end or not index:
                pairs[defect].append(_generate(project, name, defect, index, examples))
    blocks: list[tuple[str, Sequence[Example]]] = []
    for defect in defects:
        real = [example for example in examples if example.defect == defect]
        blocks += [(f"{defect}: real", real[:_SHOWN_EXAMPLES]), (f"{defect}: {GENERATOR}", pairs[defect])]
    counts = {defect: len(made) for defect, made in pairs.items()}
    return Preview(
        sheet=write_sheet(project, f"{name}-preview", blocks),
        pairs=counts,
        seconds=estimate_times(project, sample.images, len(defects), _count_training(project, sample.defect_images)),
        is_complete=all(count == per_defect for count in counts.values()),
    )


def _count_training(project: Project, defect_images: int) -> int:
    """Return about how many defect images train, for the estimate."""
    return max(1, round(defect_images * _TRAIN_FRACTION.get(project.params.split.policy, 1 / 3)))


def _load_sample(project: Project, name: str) -> SourceSample:
    raw = project.path(f"data/raw/{name}")
    if (raw / "records.parquet").is_file():
        records = record_rows(raw / "records.parquet")
        sample = SourceSample(
            load_raw_examples(raw, records, _NORMALS, _EXAMPLES, rules=rules_of(project.params.placement, name)),
            len({record.image for record in records}),
            sum(record.mask is not None for record in records),
        )
    else:
        source = project.params.sources[name]
        with open_product_source(project, name, source) as (folder, layout):
            rules = rules_of(project.params.placement, name)
            sample = load_source_examples(folder, name, layout, source, _NORMALS, _EXAMPLES, rules)
    kinds = {example.mask is None for example in sample.examples}
    for what, is_normal in (("normal image", True), ("defect example", False)):
        if is_normal not in kinds:
            raise InputError(f"product {name!r}: no {what} could be read; `defectory add-product --dry-run` says why")
    return sample


def _generate(project: Project, name: str, defect: str, index: int, examples: Sequence[Example]) -> Example:
    """Return a crop-paste pair as an example."""
    config = project.params.generator_settings(GENERATOR, name)
    if not isinstance(config, CropPasteConfig):
        raise TypeError(f"settings of {GENERATOR} are {type(config).__name__}")
    generator = CropPaste.create(config)
    with tempfile.TemporaryDirectory() as work:
        generator.fit(examples, Path(work), project.params.seed)
    plan = SynthesisPlan(
        product=name,
        generator=GENERATOR,
        base_seed=project.params.seed,
        per_defect=index + 1,
        placement=rules_of(project.params.placement, name),
    )
    normals = [example for example in examples if example.mask is None]
    sources = [example for example in examples if example.defect == defect]
    request, _ = make_request(plan, defect, index, normals, sources)
    (pair,) = generator.sample([request])
    return Example(name, defect, pair.image, pair.mask, pair.sample_id)
