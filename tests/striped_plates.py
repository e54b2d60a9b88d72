"""Six good images of a made-up product, for what learns good images: plates with coloured stripes and some noise."""

import numpy as np

from defect_core.generators.base import Example


def draw_plates() -> list[Example]:
    rng = np.random.default_rng(0)
    shade = 128 + 100 * np.sin(np.arange(96) / 5)[:, None, None] * np.array([1, -1, 0.5])
    plates = np.clip(shade + rng.normal(0, 5, (6, 96, 96, 3)), 0, 255).astype(np.uint8)
    return [Example("plate", "good", plate, None, f"{index}.png") for index, plate in enumerate(plates)]
