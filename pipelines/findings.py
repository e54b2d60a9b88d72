"""What is wrong with a stage's output: the asset checks without Dagster. Reads files, loads no network."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from defect_core.graph.instances import Instance, instances
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project

HEADLINE = "pixel_ap"
MOST_COPIES = 0.1  # part of a defect's generated images that may nearly repeat a training image
SIZE_FACTOR = 4
LOOKED_AT_PAIRS = 24  # pairs whose background is compared pixel by pixel


@dataclass(frozen=True)
class Found:
    """What is wrong, a line each; how many things were looked at; and numbers worth showing."""

    wrong: list[str]
    looked_at: int
    facts: dict[str, float] = field(default_factory=dict)


Finder = Callable[[Project, Instance], Found]


def bad_real_masks(project: Project, instance: Instance) -> Found:
    """Masks of real defects that are missing, of another size than the image, empty, or all of it."""
    from defect_core.data.records import load_mask, read_records
    from defect_core.errors import InputError

    folder = project.path(instance.outputs[0])
    defects = [record for record in read_records(folder / "records.parquet") if record.defect != "good"]
    wrong = []
    for record in defects:
        if record.mask is None:
            wrong.append(f"{record.image}: no mask")
            continue
        try:
            mask = load_mask(folder / record.mask)
        except (OSError, InputError) as error:
            wrong.append(f"{record.image}: {_line(error)}")
            continue
        if mask.shape != (record.height, record.width):
            wrong.append(f"{record.image}: {record.width}x{record.height}, mask {mask.shape[1]}x{mask.shape[0]}")
        elif mask.all() or not mask.any():
            wrong.append(f"{record.image}: its mask marks {'all' if mask.any() else 'nothing'} of it")
    return Found(wrong, len(defects))


def leaks(project: Project, instance: Instance) -> Found:
    """Images of the test side that are on the training side too: by the pixels' digest on record, or, should files
    have changed since, by their bytes as they lie there (files of different sizes are not read)."""
    from defect_core.data.records import read_records

    records = read_records(project.path(instance.outputs[0]))
    folder = project.path(instance.inputs[0])
    train = {record.sha256: record.image for record in records if record.split == "train"}
    wrong = [
        f"{train[record.sha256]} (train) = {record.image} (test)"
        for record in records
        if record.split == "test" and record.sha256 in train
    ]
    by_size: dict[int, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        path = folder / record.image
        if path.is_file():
            by_size[path.stat().st_size][record.split].append(path)
    for sides in by_size.values():
        if not sides["train"] or not sides["test"]:
            continue
        contents = {path.read_bytes(): path for path in sides["train"]}
        for path in sides["test"]:
            twin = contents.get(path.read_bytes())
            line = twin and f"{twin.relative_to(folder)} (train) = {path.relative_to(folder)} (test)"
            if line and line not in wrong:
                wrong.append(line)
    return Found(wrong, len(records))


def misaligned(project: Project, instance: Instance) -> Found:
    """Accepted pairs whose image or mask is missing or broken, that differ in size, or without a mask pixel."""
    from PIL import Image

    from defect_core.data.records import load_mask
    from defect_core.errors import InputError

    folder, rows = _accepted(project, instance)
    wrong = []
    for row in rows:
        try:
            with Image.open(folder / str(row.image)) as image:
                width, height = image.size
            mask = load_mask(folder / str(row.mask))
        except (OSError, InputError) as error:
            wrong.append(f"{row.sample_id}: {_line(error)}")
            continue
        if mask.shape != (height, width):
            wrong.append(f"{row.sample_id}: image {width}x{height}, mask {mask.shape[1]}x{mask.shape[0]}")
        elif not mask.any():
            wrong.append(f"{row.sample_id}: empty mask")
    return Found(wrong, len(rows))


def bad_masks(project: Project, instance: Instance) -> Found:
    """Masks with grey pixels, of another area than the manifest says, or over the whole image."""
    from PIL import Image

    folder, rows = _accepted(project, instance)
    wrong = []
    for row in rows:
        try:
            with Image.open(folder / str(row.mask)) as image:
                counts = image.convert("L").histogram()
        except OSError:
            continue  # `misaligned` says so
        area, total = counts[255], sum(counts)
        if counts[0] + area != total:
            wrong.append(f"{row.sample_id}: {total - counts[0] - area} pixels of its mask are neither black nor white")
        elif area != row.mask_area:
            wrong.append(f"{row.sample_id}: mask of {area} px, {row.mask_area} in the manifest")
        elif area == total:
            wrong.append(f"{row.sample_id}: mask covers the whole image")
    return Found(wrong, len(rows))


def changed_backgrounds(project: Project, instance: Instance) -> Found:
    """Pairs of a method that keeps the background, with a change outside the mask: by the manifest for all of them,
    by the pixels for some, evenly over the set."""
    from defect_core.data.records import load_image, load_mask
    from defect_core.errors import InputError
    from defect_core.generators.registry import generator_capabilities

    if not generator_capabilities(instance.fields["generator"]).keeps_background:
        return Found([], 0)
    folder, rows = _accepted(project, instance)
    wrong = [
        f"{row.sample_id}: changed by {row.change_outside:g} grey levels outside its mask"
        for row in rows
        if row.change_outside
    ]
    raw = project.path(f"data/raw/{instance.fields['product']}")
    for row in rows[:: -(-len(rows) // LOOKED_AT_PAIRS) or 1]:
        if row.source_image is None or not (raw / row.source_image).is_file():
            continue
        try:
            image, mask = load_image(folder / str(row.image)), load_mask(folder / str(row.mask))
        except (OSError, InputError):
            continue  # `misaligned` says so
        normal = load_image(raw / row.source_image)
        if image.shape != normal.shape or mask.shape != normal.shape[:2]:
            wrong.append(f"{row.sample_id}: of another size than {row.source_image}, which it was drawn on")
        elif not row.change_outside and (changed := int((image != normal).any(-1)[~mask].sum())):
            wrong.append(f"{row.sample_id}: {changed} pixels outside its mask are not those of {row.source_image}")
    return Found(wrong, len(rows))


def real_images(project: Project, instance: Instance) -> Found:
    """Accepted images that are a real image of the product, pixel for pixel: no defect, or a test image leaked."""
    from defect_core.data.records import read_records

    _, rows = _accepted(project, instance)
    table = project.path(f"data/split/{instance.fields['product']}.parquet")
    real = {record.sha256: record for record in read_records(table)}
    wrong = [
        f"{row.sample_id} = {real[row.image_sha256].image} ({real[row.image_sha256].split})"
        for row in rows
        if row.image_sha256 in real
    ]
    return Found(wrong, len(rows))


def too_few(project: Project, instance: Instance) -> Found:
    """Defects with fewer accepted pairs than params.yaml asks for."""
    from defect_core.data.manifest import read_manifest

    rows = read_manifest(project.path(instance.outputs[0]) / "manifest.parquet")
    accepted = Counter(row.defect for row in rows if row.accepted)
    lenders = {row.defect: row.source_product or row.product for row in rows}
    wrong = []
    for defect, lender in sorted(lenders.items()):
        wanted = project.params.synthesize.wanted(_known(project, lender)[defect])
        if accepted[defect] < wanted:
            wrong.append(f"{defect}: {accepted[defect]} of {wanted}")
    return Found(wrong or ([] if rows else ["no draws"]), len(lenders))


def odd_sizes(project: Project, instance: Instance) -> Found:
    """Masks of another order of size than the real ones that the generator knew."""
    from defect_core.data.records import load_mask, read_records

    _, rows = _accepted(project, instance)
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    areas: dict[str, int] = {}
    for product in {row.source_product or row.product for row in rows}:
        for record in read_records(project.path(f"data/split/{product}.parquet")):
            if record.split == "train" and record.mask is not None:
                mask = load_mask(project.path(f"data/raw/{product}") / record.mask)
                shares[product, record.defect].append(float(mask.mean()))
            areas.setdefault(product, record.width * record.height)
    wrong = []
    for row in rows:
        known = shares.get((row.source_product or row.product, row.defect))
        if not known:
            continue
        share = row.mask_area / areas.get(row.product, next(iter(areas.values())))
        if not min(known) / SIZE_FACTOR <= share <= max(known) * SIZE_FACTOR:
            wrong.append(f"{row.sample_id}: {share:.2%} of the image; real ones {min(known):.2%} to {max(known):.2%}")
    return Found(wrong, len(rows))


def copies(project: Project, instance: Instance) -> Found:
    """Defects of which too many generated images nearly repeat a training image (score `memorisation_copies`)."""
    content = json.loads(project.path(instance.metrics[0]).read_text(encoding="utf-8"))
    scores = {d: found.get("memorisation_copies") for d, found in content["scores"].get("defects", {}).items()}
    known = {defect: value for defect, value in scores.items() if value is not None}
    wrong = [f"{defect}: {value:.0%} copies" for defect, value in sorted(known.items()) if value > MOST_COPIES]
    facts = {"most_copies": max(known.values())} if known else {}
    return Found(wrong, len(known), facts)


def worse(project: Project, instance: Instance) -> Found:
    """Arms below `real_only`. The baseline's own instance looks at all arms of the product, for any of them may have
    been measured before it was."""
    product, arm = instance.fields["product"], instance.fields["arm"]
    values: dict[str, float] = {}
    for cell in instances(instance.stage, project.params):
        path = project.path(cell.metrics[0])
        if cell.fields["product"] == product and path.is_file():
            value = json.loads(path.read_text(encoding="utf-8"))["mean"].get(HEADLINE)
            if value is not None:
                values[cell.fields["arm"]] = value
    base = values.pop(BASELINE_ARM, None)
    looked_at = values if arm == BASELINE_ARM else {name: v for name, v in values.items() if name == arm}
    if base is None:
        return Found([], 0)
    wrong = [f"{product}, {name}: {value:.4f} < {base:.4f}" for name, value in looked_at.items() if value < base]
    return Found(wrong, len(looked_at))


def _accepted(project: Project, instance: Instance) -> tuple[Path, list]:
    from defect_core.data.manifest import read_manifest

    folder = project.path(instance.outputs[0])
    return folder, [row for row in read_manifest(folder / "manifest.parquet") if row.accepted]


def _known(project: Project, product: str) -> Counter:
    """How many training images with a mask a product has of each defect."""
    from defect_core.data.records import read_records

    records: Iterable = read_records(project.path(f"data/split/{product}.parquet"))
    return Counter(record.defect for record in records if record.split == "train" and record.mask is not None)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
