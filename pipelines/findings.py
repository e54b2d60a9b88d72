"""Checks of the output of a stage, without Dagster: what is wrong, and how much was checked. They load no network."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from defect_core.data.images import open_image
from defect_core.data.manifest import ManifestRow, manifest_rows
from defect_core.data.mask_sources import check_mask
from defect_core.data.records import GOOD, load_image, load_mask, read_records, record_rows
from defect_core.errors import InputError
from defect_core.graph.instances import Instance, instances
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project

HEADLINE = "pixel_ap"
MAX_COPIES = 0.1
"""Largest fraction of the images of a defect type that may nearly repeat a training image. Our choice."""
SIZE_FACTOR = 4
"""Largest ratio between the area of a generated mask and the nearest area of a real one. Our choice."""
CHECKED_BACKGROUNDS = 24
"""Number of pairs whose background is compared pixel by pixel, so that a check takes seconds."""


@dataclass(frozen=True)
class Findings:
    """The result of a check.

    Attributes:
        problems: one line each; empty if the output passes.
        checked: number of images, pairs, defect types or arms that were checked.
        numbers: numbers that the UI shows.
    """

    problems: list[str]
    checked: int
    numbers: dict[str, float] = field(default_factory=dict)


Finder = Callable[[Project, Instance], Findings]


class AcceptedPair(NamedTuple):
    """An accepted row of a manifest, with the paths of its files."""

    row: ManifestRow
    image: Path
    mask: Path


def check_real_masks(project: Project, instance: Instance) -> Findings:
    """Find real defects whose mask is missing, differs in size, is empty, or covers the whole image."""
    folder = project.path(instance.outputs[0])
    defective = [record for record in record_rows(folder / "records.parquet") if record.defect != GOOD]
    problems = []
    for record in defective:
        if record.mask is None:
            problems.append(f"{record.image}: no mask")
            continue
        try:
            mask = load_mask(folder / record.mask)
        except (OSError, InputError) as error:
            problems.append(f"{record.image}: {_one_line(error)}")
            continue
        if mask.shape != (record.height, record.width):
            problems.append(f"{record.image}: {record.width}x{record.height}, mask {mask.shape[1]}x{mask.shape[0]}")
        elif wrong := check_mask(mask):
            problems.append(f"{record.image}: {wrong}")
    return Findings(problems, len(defective))


def check_disjoint_split(project: Project, instance: Instance) -> Findings:
    """Find images that are both training and test images.

    Two images are equal if their recorded pixel digests are. The files are compared too, because they may have changed
    since; files of different sizes are not read.
    """
    records = record_rows(project.path(instance.outputs[0]))
    folder = project.path(instance.inputs[0])
    train = {record.sha256: record.image for record in records if record.split == "train"}
    problems = [
        f"{train[record.sha256]} (train) = {record.image} (test)"
        for record in records
        if record.split == "test" and record.sha256 in train
    ]
    by_size: dict[int, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        path = folder / record.image
        if path.is_file():
            by_size[path.stat().st_size][record.split].append(path)
    for by_split in by_size.values():
        if not by_split["train"] or not by_split["test"]:
            continue
        train_files = {path.read_bytes(): path for path in by_split["train"]}
        for path in by_split["test"]:
            duplicate = train_files.get(path.read_bytes())
            line = duplicate and f"{duplicate.relative_to(folder)} (train) = {path.relative_to(folder)} (test)"
            if line and line not in problems:
                problems.append(line)
    return Findings(problems, len(records))


def check_pair_files(project: Project, instance: Instance) -> Findings:
    """Find accepted pairs with a missing or broken file, with an image and a mask of two sizes, or an empty mask."""
    pairs = _accepted_pairs(project, instance)
    problems = []
    for pair in pairs:
        try:
            with open_image(pair.image) as image:
                width, height = image.size
            mask = load_mask(pair.mask)
        except (OSError, InputError) as error:
            problems.append(f"{pair.row.sample_id}: {_one_line(error)}")
            continue
        if mask.shape != (height, width):
            problems.append(f"{pair.row.sample_id}: image {width}x{height}, mask {mask.shape[1]}x{mask.shape[0]}")
        elif not mask.any():
            problems.append(f"{pair.row.sample_id}: empty mask")
    return Findings(problems, len(pairs))


def check_masks(project: Project, instance: Instance) -> Findings:
    """Find masks with grey pixels, with another area than in the manifest, or over the whole image."""
    pairs = _accepted_pairs(project, instance)
    problems = []
    for pair in pairs:
        name = pair.row.sample_id
        try:
            with open_image(pair.mask) as image:
                counts = image.convert("L").histogram()
        except (OSError, InputError):
            continue  # `check_pair_files` reports it.
        area, total = counts[255], sum(counts)
        if counts[0] + area != total:
            problems.append(f"{name}: {total - counts[0] - area} pixels of its mask are neither black nor white")
        elif area != pair.row.mask_area:
            problems.append(f"{name}: mask of {area} px, {pair.row.mask_area} in the manifest")
        elif area == total:
            problems.append(f"{name}: mask covers the whole image")
    return Findings(problems, len(pairs))


def check_backgrounds(project: Project, instance: Instance) -> Findings:
    """Find pairs with a change outside the mask, for generators with the capability `keeps_background`.

    The measurements in the manifest are read for all pairs. The pixels of some pairs, evenly spaced, are compared with
    the normal image.
    """
    if not project.params.capabilities(instance.fields["generator"]).keeps_background:
        return Findings([], 0)
    pairs = _accepted_pairs(project, instance)
    problems = [
        f"{row.sample_id}: changed by {row.change_outside:g} grey levels outside its mask"
        for row, *_ in pairs
        if row.change_outside
    ]
    raw = project.path(f"data/raw/{instance.fields['product']}")
    for pair in pairs[:: -(-len(pairs) // CHECKED_BACKGROUNDS) or 1]:
        problem = _compare_background(pair, raw)
        if problem:
            problems.append(f"{pair.row.sample_id}: {problem}")
    return Findings(problems, len(pairs))


def check_no_real_image(project: Project, instance: Instance) -> Findings:
    """Find accepted images that equal a real image of the product: no defect was added, or a test image leaked."""
    pairs = _accepted_pairs(project, instance)
    table = project.path(f"data/split/{instance.fields['product']}.parquet")
    real = {record.sha256: record for record in record_rows(table)}
    problems = [
        f"{row.sample_id} = {real[row.image_sha256].image} ({real[row.image_sha256].split})"
        for row, *_ in pairs
        if row.image_sha256 in real
    ]
    return Findings(problems, len(pairs))


def check_accepted_counts(project: Project, instance: Instance) -> Findings:
    """Find defect types with fewer accepted pairs than `synthesize.per_defect` of params.yaml."""
    rows = manifest_rows(project.path(instance.outputs[0]) / "manifest.parquet")
    accepted = Counter(row.defect for row in rows if row.accepted)
    lenders = {row.defect: row.source_product or row.product for row in rows}
    problems = []
    for defect, lender in sorted(lenders.items()):
        target = project.params.synthesize.target_count(_count_examples(project, lender)[defect])
        if accepted[defect] < target:
            problems.append(f"{defect}: {accepted[defect]} of {target}")
    return Findings(problems or ([] if rows else ["the manifest is empty"]), len(lenders))


def check_mask_sizes(project: Project, instance: Instance) -> Findings:
    """Find masks that are `SIZE_FACTOR` times larger or smaller than all real training masks of their defect type.

    Areas are fractions of the image, because images of a product may differ in size.
    """
    pairs = _accepted_pairs(project, instance)
    real_fractions: dict[tuple[str, str], list[float]] = defaultdict(list)
    areas: dict[str, int] = {}
    for product in {row.source_product or row.product for row, *_ in pairs}:
        for record in record_rows(project.path(f"data/split/{product}.parquet")):
            if record.split == "train" and record.mask is not None:
                mask = load_mask(project.path(f"data/raw/{product}") / record.mask)
                real_fractions[product, record.defect].append(float(mask.mean()))
            areas.setdefault(product, record.width * record.height)
    problems = []
    for row, *_ in pairs:
        real = real_fractions.get((row.source_product or row.product, row.defect))
        if not real:
            continue
        fraction = row.mask_area / areas.get(row.product, next(iter(areas.values())))
        if not min(real) / SIZE_FACTOR <= fraction <= max(real) * SIZE_FACTOR:
            problems.append(f"{row.sample_id}: {fraction:.2%} of the image; real: {min(real):.2%} to {max(real):.2%}")
    return Findings(problems, len(pairs))


def check_copies(project: Project, instance: Instance) -> Findings:
    """Find defect types of which too many images nearly repeat a training image (score `memorisation_copies`)."""
    content = json.loads(project.path(instance.metrics[0]).read_text(encoding="utf-8"))
    by_defect = content["scores"].get("defects", {})
    fractions = {defect: scores.get("memorisation_copies") for defect, scores in sorted(by_defect.items())}
    known = {defect: fraction for defect, fraction in fractions.items() if fraction is not None}
    problems = [f"{defect}: {fraction:.0%} copies" for defect, fraction in known.items() if fraction > MAX_COPIES]
    return Findings(problems, len(known), {"max_copies": max(known.values())} if known else {})


def check_against_baseline(project: Project, instance: Instance) -> Findings:
    """Find arms with a lower pixel AP than `real_only`.

    The instance of the baseline checks all arms of the product, because any of them may have run before it.
    """
    product, arm = instance.fields["product"], instance.fields["arm"]
    values: dict[str, float] = {}
    for cell in instances(instance.stage, project.params):
        path = project.path(cell.metrics[0])
        if cell.fields["product"] == product and path.is_file():
            value = json.loads(path.read_text(encoding="utf-8"))["mean"].get(HEADLINE)
            if value is not None:
                values[cell.fields["arm"]] = value
    baseline = values.pop(BASELINE_ARM, None)
    if baseline is None:
        return Findings([], 0)
    checked = values if arm == BASELINE_ARM else {name: value for name, value in values.items() if name == arm}
    problems = [
        f"{product}, {name}: {value:.4f} < {baseline:.4f}" for name, value in checked.items() if value < baseline
    ]
    return Findings(problems, len(checked))


def _compare_background(pair: AcceptedPair, raw: Path) -> str:
    """Return how the pixels outside the mask differ from the normal image below `raw`; empty if they do not."""
    source = pair.row.source_image
    if source is None or not (raw / source).is_file():
        return ""
    try:
        image, mask = load_image(pair.image), load_mask(pair.mask)
    except (OSError, InputError):
        return ""  # `check_pair_files` reports it.
    normal = load_image(raw / source)
    if image.shape != normal.shape or mask.shape != normal.shape[:2]:
        return f"its size differs from that of its normal image {source}"
    changed = int((image != normal).any(-1)[~mask].sum())
    if changed and not pair.row.change_outside:
        return f"{changed} pixels outside its mask differ from {source}"
    return ""


def _accepted_pairs(project: Project, instance: Instance) -> list[AcceptedPair]:
    folder = project.path(instance.outputs[0])
    rows = manifest_rows(folder / "manifest.parquet")
    return [AcceptedPair(row, folder / str(row.image), folder / str(row.mask)) for row in rows if row.accepted]


def _count_examples(project: Project, product: str) -> Counter[str]:
    """Return the number of training images with a mask of each defect type."""
    records = read_records(project.path(f"data/split/{product}.parquet"))
    return Counter(records.defect[(records.split == "train") & records["mask"].notna()].tolist())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
