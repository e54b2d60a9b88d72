"""Asset checks: what must hold of a stage's output. They run inside the asset, in no process of their own."""

import json
from collections import Counter

import dagster as dg

from defect_core.params import BASELINE_ARM
from defect_core.project import Project
from defect_core.stages import Instance, Stage, instances

DISJOINT_SPLIT = "disjoint_split"
PAIRS_ALIGNED = "pairs_aligned"
BACKGROUND_KEPT = "background_kept"
ENOUGH_ACCEPTED = "enough_accepted"
NOT_WORSE = "not_worse_than_real_only"
HEADLINE = "pixel_ap"


def check_specs(stage: Stage) -> list[dg.AssetCheckSpec]:
    """The checks of a stage's asset. A blocking one that fails stops what comes after; the others only warn."""
    specs = {
        "split": [(DISJOINT_SPLIT, True, "No image content is in both train and test.")],
        "synthesize": [
            (
                PAIRS_ALIGNED,
                True,
                "Each accepted pair has an image and a mask of one size; no mask is empty.",
            ),
            (BACKGROUND_KEPT, True, "Methods that promise it left every pixel outside the mask as it was."),
            (ENOUGH_ACCEPTED, False, "Each defect got as many accepted pairs as params.yaml asks for."),
        ],
        "segment": [(NOT_WORSE, False, "No arm with synthetic pairs has a lower pixel AP than real_only.")],
    }
    return [
        dg.AssetCheckSpec(name, asset=stage.name, blocking=blocking, description=about)
        for name, blocking, about in specs.get(stage.name, [])
    ]


def check_results(project: Project, instance: Instance) -> list[dg.AssetCheckResult]:
    """The results of all checks of an instance that is up to date, in the order of `check_specs`."""
    if instance.stage.name == "split":
        return [_disjoint_split(project, instance)]
    if instance.stage.name == "synthesize":
        return [
            _pairs_aligned(project, instance),
            _background_kept(project, instance),
            _enough_accepted(project, instance),
        ]
    if instance.stage.name == "segment":
        return [_not_worse(project, instance)]
    return []


def _disjoint_split(project: Project, instance: Instance) -> dg.AssetCheckResult:
    from defect_core.data.records import read_records

    records = read_records(project.path(instance.outputs[0]))
    train = {record.sha256: record.image for record in records if record.split == "train"}
    leaks = [
        f"{train[record.sha256]} (train) = {record.image} (test)"
        for record in records
        if record.split == "test" and record.sha256 in train
    ]
    return _result(instance, DISJOINT_SPLIT, leaks, dg.AssetCheckSeverity.ERROR)


def _pairs_aligned(project: Project, instance: Instance) -> dg.AssetCheckResult:
    from PIL import Image

    from defect_core.data.manifest import read_manifest
    from defect_core.data.records import load_mask
    from defect_core.errors import InputError

    folder = project.path(instance.outputs[0])
    wrong = []
    for row in read_manifest(folder / "manifest.parquet"):
        if not row.accepted:
            continue
        try:
            with Image.open(folder / str(row.image)) as image:
                width, height = image.size
            mask = load_mask(folder / str(row.mask))
        except (OSError, InputError) as error:
            wrong.append(f"{row.sample_id}: {' '.join(str(error).split())}")
            continue
        if mask.shape != (height, width):
            wrong.append(f"{row.sample_id}: image {width}x{height}, mask {mask.shape[1]}x{mask.shape[0]}")
        elif not mask.any():
            wrong.append(f"{row.sample_id}: empty mask")
    return _result(instance, PAIRS_ALIGNED, wrong, dg.AssetCheckSeverity.ERROR)


def _background_kept(project: Project, instance: Instance) -> dg.AssetCheckResult:
    from defect_core.data.manifest import read_manifest
    from defect_core.generators.registry import generator_promises

    wrong = []
    if generator_promises(instance.fields["generator"]).keeps_background:
        rows = read_manifest(project.path(instance.outputs[0]) / "manifest.parquet")
        wrong = [
            f"{row.sample_id}: changed by {row.change_outside:g} grey levels outside its mask"
            for row in rows
            if row.accepted and row.change_outside
        ]
    return _result(instance, BACKGROUND_KEPT, wrong, dg.AssetCheckSeverity.ERROR)


def _enough_accepted(project: Project, instance: Instance) -> dg.AssetCheckResult:
    from defect_core.data.manifest import read_manifest

    rows = read_manifest(project.path(instance.outputs[0]) / "manifest.parquet")
    wanted = project.params.synthesize.per_defect
    accepted = Counter(row.defect for row in rows if row.accepted)
    short = [
        f"{defect}: {accepted[defect]} of {wanted}"
        for defect in sorted({row.defect for row in rows})
        if accepted[defect] < wanted
    ]
    return _result(instance, ENOUGH_ACCEPTED, short or ([] if rows else ["no draws"]), dg.AssetCheckSeverity.WARN)


def _not_worse(project: Project, instance: Instance) -> dg.AssetCheckResult:
    """Over all arms measured so far, not only this one: Dagster shows one latest result per check, not per partition,
    and the baseline may be measured last."""
    values: dict[tuple[str, str], float] = {}
    for cell in instances(instance.stage, project.params):
        path = project.path(cell.metrics[0])
        value = json.loads(path.read_text(encoding="utf-8"))["mean"].get(HEADLINE) if path.is_file() else None
        if value is not None:
            values[cell.fields["product"], cell.fields["arm"]] = value
    worse, compared = [], 0
    for (product, arm), value in values.items():
        base = values.get((product, BASELINE_ARM))
        if arm == BASELINE_ARM or base is None:
            continue
        compared += 1
        if value < base:
            worse.append(f"{product}, {arm}: {value:.4f} < {base:.4f}")
    result = _result(instance, NOT_WORSE, worse, dg.AssetCheckSeverity.WARN)
    return result._replace(metadata={**result.metadata, "arms_compared": dg.MetadataValue.int(compared)})


def _result(instance: Instance, name: str, wrong: list[str], severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    shown = "; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else "")
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=instance.stage.name,
        passed=not wrong,
        severity=severity,
        description=shown or None,
        metadata={"instance": instance.address, "wrong": len(wrong)},
    )
