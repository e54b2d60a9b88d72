"""The dataset card: what is in an exported set, what drew it, how good it is, and what it is not."""

import json
from pathlib import Path
from typing import Any

from defect_core.errors import InputError
from defect_core.generators.registry import generator_capabilities
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project, folder_digest

SHOWN = {"pixel_ap": "pixel AP", "pixel_f1_max": "F1-max", "pro": "PRO", "image_auroc": "image AUROC"}
LAYOUTS = {
    "mvtec": "MVTec AD's layout. Synthetic defects lie in `test/`, where that layout has its defects; they are meant "
    "for training.",
    "coco": "COCO's layout. A mask is an uncompressed run-length code per connected spot, exact to the pixel.",
    "yolo": "YOLO's segmentation layout. A spot is the polygon around it: holes in it are lost.",
}
LIMITS = """\
- Every defect here is synthetic; the good images are real and belong to whoever took them.
- The defect types, and how they can look, are those of the few real examples the methods learned from. A defect that
  looks otherwise is not in here.
- Masks say where a defect was drawn. At a blurred edge another annotator would draw them otherwise.
- The set was let through because a small segmenter trained with it was no worse on real test images than without it and
  than with the set before. The test side thereby took part in choosing it: its scores are a little flattered, and test
  images should not be reported on as unseen.
- Nothing here says anything about other products, cameras or light.
"""


def write_card(
    project: Project,
    layout: str,
    releases: dict[str, dict[str, Any]],
    counts: dict[str, dict[str, int]],
    folder: Path,
) -> None:
    """Write `README.md` into an exported folder.

    Args:
        releases: content of every product's `release.json`.
        counts: exported images by product and defect.
    """
    lines = [f"# Synthetic defects of {', '.join(releases)}", "", f"Image-mask pairs. {LAYOUTS[layout]}", ""]
    lines += ["## Counts", "", *_table(("product", "kind", "images"), _count_rows(counts)), ""]
    lines += ["## Methods and weights", ""]
    lines += [*_table(("product", "method", "set, sha256", "weights", "licence"), _methods(project, releases)), ""]
    lines += ["## Scores", "", "The segmenter on real test images, percent, mean ± deviation over seeds:", ""]
    lines += [*_table(("product", "trained on", *SHOWN.values()), _segmenters(project, releases)), ""]
    distances = _distances(project, releases)
    if distances:
        lines += [
            "The set itself, against real test defects (Fréchet distance on ImageNet EfficientNet-Lite0 features,",
            "not comparable to FID):",
            "",
            *_table(("product", "method", "Fréchet*", "accepted"), distances),
            "",
        ]
    lines += ["## Limits", "", LIMITS]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def licence_of(project: Project, backbone: str) -> str:
    """The licence that a backbone's own card names, as far as it lies here."""
    if backbone == "embedded":
        return "Apache-2.0 (the embedded backbone, see its model card)"
    card = project.path(backbone) / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8").splitlines():
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    return "not known here: see the card of these weights"


def _count_rows(counts: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    rows = []
    for product, kinds in counts.items():
        for kind, number in sorted(kinds.items()):
            rows.append((product, "good (real)" if kind == "good" else kind, str(number)))
    return rows


def _methods(project: Project, releases: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for product, release in releases.items():
        for name, digest in release["sets"].items():
            weights, licence = "none", "–"
            if _uses_backbone(name):
                weights, licence = release["backbone"], licence_of(project, release["backbone"])
            rows.append((product, name, digest[:16], weights, licence))
    return rows


def _uses_backbone(name: str) -> bool:
    try:
        return generator_capabilities(name).uses_backbone
    except InputError:  # a method of a package that is no longer installed
        return True


def _segmenters(project: Project, releases: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for product, release in releases.items():
        record = _read(project, f"metrics/release/{product}.json")
        entries = [("real defects only", record.get(BASELINE_ARM))] if record.get("decision") == "promoted" else []
        for label, entry in [*entries, (f"and {release['arm']}", release)]:
            if entry:
                rows.append((product, label, *(_percent(entry, name) for name in SHOWN)))
    return rows


def _distances(project: Project, releases: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Only where the scores on record are those of the very set that is released."""
    rows = []
    for product, release in releases.items():
        for name, digest in release["sets"].items():
            here = project.path(f"data/synthetic/{product}/{name}")
            scores = _read(project, f"metrics/score/{product}/{name}.json")
            if scores and here.is_dir() and folder_digest(here) == digest:
                value = scores["scores"]["pooled"].get("frechet_lite0")
                rate = scores["acceptance"]["acceptance_rate"]
                rows.append((product, name, "" if value is None else f"{value:.4g}", f"{100 * rate:.0f} %"))
    return rows


def _percent(entry: dict[str, Any], name: str) -> str:
    value, spread = entry["mean"].get(name), entry["std"].get(name)
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _read(project: Project, relative: str) -> dict[str, Any]:
    path = project.path(relative)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (header, ("---",) * len(header), *rows)]
