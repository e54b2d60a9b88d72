"""score: compares a synthetic set with real defects, into `metrics/score/`.

Distances between distributions use the test images, which no generator has seen. Diversity and memorisation use the
training images. A zero-shot defect type is scored on its own, against the test images if the product has any of it.
"""

from typing import Any

from defect_core.data.files import write_json
from defect_core.data.guarded import read_json
from defect_core.data.manifest import manifest_rows
from defect_core.data.records import load_image, load_mask
from defect_core.errors import InputError
from defect_core.generators.base import Example
from defect_core.metrics.protocol import ImageSets, ScoreOptions, score_sets
from defect_core.metrics.store import FeatureStore
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project, synthetic_folder

ExamplesByDefect = dict[str, list[Example]]
NO_REAL_EXAMPLE = "the product has no real example of it"


def run(project: Project, product: str, generator: str) -> None:
    """Run the stage for one product and generator."""
    train, test = (_group_defects(load_examples(project, product, split)) for split in ("train", "test"))
    folder = project.path(synthetic_folder(product, generator))
    generated: ExamplesByDefect = {}
    for row in manifest_rows(folder / "manifest.parquet"):
        if row.accepted and row.image and row.mask:
            image, mask = load_image(folder / row.image), load_mask(folder / row.mask)
            generated.setdefault(row.defect, []).append(Example(product, row.defect, image, mask, row.image))
    if not generated:
        raise InputError(f"{synthetic_folder(product, generator)}: has no accepted pair; nothing to score")
    lenders = {entry.defect: entry.lender for entry in project.params.borrowed_defects(product, generator)}
    zero_shot = {defect: generated.pop(defect) for defect in lenders if defect in generated}
    result: dict[str, Any] = {"protocol": {}, "scores": {"pooled": {}, "defects": {}}, "missing": {}}
    if generated:
        result = _score(project, train, generated, test)
    for defect, pairs in sorted(zero_shot.items()):
        entry: dict[str, Any] = {"from": lenders[defect], "generated": len(pairs)}
        entry |= {"scores": {}, "missing": {"all": NO_REAL_EXAMPLE}}
        if defect in test:
            real = {defect: test[defect]}
            scored = _score(project, real, {defect: pairs}, real)
            entry |= {"scores": scored["scores"]["pooled"], "missing": scored["missing"]}
        result.setdefault("zero_shot", {})[defect] = entry
    result["product"], result["generator"] = product, generator
    result["acceptance"] = read_json(folder / "summary.json", ("acceptance_rate",))
    write_json(project.path(f"metrics/score/{product}/{generator}.json"), result)


def _score(
    project: Project, train: ExamplesByDefect, generated: ExamplesByDefect, test: ExamplesByDefect
) -> dict[str, Any]:
    options = ScoreOptions(
        image_size=project.params.score.image_size,
        seed=project.params.seed,
        store=FeatureStore(project.state / "features"),
    )
    sets = [ImageSets.from_examples(examples) for examples in (train, generated, test)]
    return score_sets(sets[0], sets[1], sets[2], options)


def _group_defects(examples: list[Example]) -> ExamplesByDefect:
    """Return the examples with masks by defect type."""
    grouped: ExamplesByDefect = {}
    for example in examples:
        if example.mask is not None:
            grouped.setdefault(example.defect, []).append(example)
    return grouped
