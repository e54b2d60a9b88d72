"""A contact sheet of a project's defects: one row of real ones, and one row per generator.

    python -m benchmarks.picture PROJECT FILE [PRODUCT ...]

It has windows around the masks of three examples of each defect type: training images, and the first accepted pairs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from defect_core.data.manifest import manifest_rows
from defect_core.data.records import load_image, load_mask, save_png
from defect_core.generators.base import Image as Pixels
from defect_core.generators.base import Mask
from defect_core.generators.canvas import choose_window, crop_image
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project
from defect_core.report.sheets import contact_sheet

EXAMPLES, SIDE = 3, 88
CONTEXT, MIN_SIDE = 2.2, 40  # Of the windows, see `choose_window`.


def main(project: Project, file: Path, products: Sequence[str]) -> None:
    """Save the sheet of a project in `file`; without `products`, of all its products."""
    rows: dict[str, list[Pixels]] = {name: [] for name in ("real", *project.params.generators)}
    for product in products or project.params.products:
        examples = [example for example in load_examples(project, product, "train") if example.mask is not None]
        for defect in sorted({example.defect for example in examples}):
            real = [(each.image, each.mask) for each in examples if each.defect == defect]
            rows["real"] += _row(real[:EXAMPLES])
            for name in project.params.generators:
                folder = project.path(f"data/synthetic/{product}/{name}")
                accepted = [r for r in manifest_rows(folder / "manifest.parquet") if r.accepted and r.defect == defect]
                pairs = [(load_image(folder / r.image), load_mask(folder / r.mask)) for r in accepted[:EXAMPLES]]
                rows[name] += _row(pairs)
    images = [tile for row in rows.values() for tile in row]
    save_png(contact_sheet(images, [None] * len(images), columns=len(rows["real"]), cell=SIDE), file)
    print("rows: " + ", ".join(rows))


def _row(pairs: Sequence[tuple[Pixels, Mask]]) -> list[Pixels]:
    """`EXAMPLES` windows around the masks; missing ones are white."""
    windows = [crop_image(image, choose_window(mask, "local", CONTEXT, MIN_SIDE), SIDE) for image, mask in pairs]
    blank = [contact_sheet([], [], 1, SIDE)] * (EXAMPLES - len(windows))
    return [*windows, *blank]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Project(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:])
