"""One picture of a project's synthetic defects: a row of real ones and one per generator, windows around the masks.

    python -m benchmarks.picture PROJECT FILE [PRODUCT ...]

Three examples of each defect of each product, the real ones from the training side; the first accepted pairs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from defect_core.data.manifest import read_manifest
from defect_core.data.records import load_image, load_mask, save_png
from defect_core.generators.base import Image as Pixels
from defect_core.generators.base import Mask
from defect_core.generators.canvas import choose_window, crop_image
from defect_core.project.loading import load_examples
from defect_core.project.paths import Project
from defect_core.report.sheets import contact_sheet

EACH, SIDE = 3, 88


def main(project: Project, file: Path, products: Sequence[str]) -> None:
    rows: dict[str, list[Pixels]] = {name: [] for name in ("real", *project.params.generators)}
    for product in products or project.params.products:
        examples = [example for example in load_examples(project, product, "train") if example.mask is not None]
        for defect in sorted({example.defect for example in examples}):
            own = [example for example in examples if example.defect == defect]
            rows["real"] += _row([(one.image, one.mask) for one in own[:EACH]])
            for name in project.params.generators:
                folder = project.path(f"data/synthetic/{product}/{name}")
                made = [r for r in read_manifest(folder / "manifest.parquet") if r.accepted and r.defect == defect]
                pairs = [(load_image(folder / r.image), load_mask(folder / r.mask)) for r in made[:EACH]]
                rows[name] += _row(pairs)
    images = [tile for row in rows.values() for tile in row]
    save_png(contact_sheet(images, [None] * len(images), columns=len(rows["real"]), cell=SIDE), file)
    print("rows: " + ", ".join(rows))


def _row(pairs: Sequence[tuple[Pixels, Mask]]) -> list[Pixels]:
    """`EACH` windows around the masks; white where there are fewer pairs."""
    shown = [crop_image(image, choose_window(mask, "local", 2.2, 40), SIDE) for image, mask in pairs]
    blank = [contact_sheet([], [], 1, SIDE)] * (EACH - len(shown))
    return [*shown, *blank]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Project(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:])
