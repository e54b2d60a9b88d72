"""Dataset card of an exported set: contents, generators, scores and limits."""

from pathlib import Path
from typing import Any

from defect_core.data.files import folder_digest, write_text
from defect_core.data.guarded import read_json
from defect_core.data.records import GOOD
from defect_core.errors import InputError
from defect_core.generators.registry import generator_capabilities
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project

SCORES = {"pixel_ap": "pixel AP", "pixel_f1_max": "F1-max", "pro": "PRO", "image_auroc": "image AUROC"}
LAYOUTS = {
    "mvtec": "Layout of MVTec AD. Synthetic defects are in `test/`, because this layout has its defects there. They "
    "are meant for training.",
    "coco": "Layout of COCO. Each connected component of a mask is run-length encoded without loss.",
    "yolo": "Layout of YOLO segmentation. Each connected component of a mask is a polygon, which fills its holes.",
}
LIMITS = """\
- Every defect in this set is synthetic. The normal images are real and belong to their authors.
- The defect types and their appearance follow the few real examples that the generators were trained on. The set has
  no other kind of defect.
- A mask marks the region of the generated defect. At blurred edges an annotator may choose another boundary.
- The release gate compared a segmenter trained with this set to one trained without it, on the real test images. The
  scores above are therefore slightly optimistic. Do not report these test images as unseen.
- The set is not evidence for other products, cameras or lighting.
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
        project: the project with the releases.
        layout: name of the export format.
        releases: content of the `release.json` of each product.
        counts: number of exported images by product and defect type.
        folder: the exported folder.
    """
    lines = [f"# Synthetic defects of {', '.join(releases)}", "", f"Image-mask pairs. {LAYOUTS[layout]}", ""]
    lines += ["## Counts", "", *_table(("product", "type", "images"), _count_rows(counts)), ""]
    lines += ["## Generators and weights", ""]
    lines += [*_table(("product", "generator", "set, sha256", "weights", "licence"), _methods(project, releases)), ""]
    lines += ["## Scores", "", "Segmenter on real test images, percent, mean ± standard deviation over seeds:", ""]
    lines += [*_table(("product", "trained on", *SCORES.values()), _segmenters(project, releases)), ""]
    distances = _distances(project, releases)
    if distances:
        lines += [
            "Synthetic defects compared with real test defects. Fréchet* is the Fréchet distance on features of an",
            "ImageNet EfficientNet-Lite0; it is not comparable with FID:",
            "",
            *_table(("product", "generator", "Fréchet*", "accepted"), distances),
            "",
        ]
    lines += ["## Limits", "", LIMITS]
    write_text(folder / "README.md", "\n".join(lines))


def licence_of(project: Project, backbone: str) -> str:
    """Return the licence in the model card of a backbone, or a note if its folder has no card.

    Args:
        project: paths of backbones are relative to it.
        backbone: `embedded` or the folder of a backbone.
    """
    if backbone == "embedded":
        return "Apache-2.0 (the embedded backbone, see its model card)"
    card = project.path(backbone) / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8").splitlines():
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    return "unknown: see the model card of these weights"


def _count_rows(counts: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    rows = []
    for product, numbers in counts.items():
        for defect, number in sorted(numbers.items()):
            rows.append((product, "normal (real)" if defect == GOOD else defect, str(number)))
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
    except InputError:  # The package of this generator is no longer installed.
        return True


def _segmenters(project: Project, releases: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for product, release in releases.items():
        record = _read(project, f"metrics/release/{product}.json")
        entries = [("real defects only", record.get(BASELINE_ARM))] if record.get("decision") == "promoted" else []
        for label, entry in [*entries, (f"and {release['arm']}", release)]:
            if entry:
                rows.append((product, label, *(_percent(entry, name) for name in SCORES)))
    return rows


def _distances(project: Project, releases: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the sets whose current scores belong to the released content."""
    rows = []
    for product, release in releases.items():
        for name, digest in release["sets"].items():
            current = project.path(f"data/synthetic/{product}/{name}")
            scores = _read(project, f"metrics/score/{product}/{name}.json")
            if scores and current.is_dir() and folder_digest(current) == digest:
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
    return read_json(path) if path.is_file() else {}


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (header, ("---",) * len(header), *rows)]
