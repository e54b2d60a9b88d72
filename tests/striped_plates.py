"""Six normal images of a synthetic product for tests of the adaptation: plates with coloured stripes and some noise."""

import numpy as np

from defect_core.generators.base import Example


def make_plates() -> list[Example]:
    """Return the six plates, 96 x 96 pixels."""
    rng = np.random.default_rng(0)
    stripes = 128 + 100 * np.sin(np.arange(96) / 5)[:, None, None] * np.array([1, -1, 0.5])
    plates = np.clip(stripes + rng.normal(0, 5, (6, 96, 96, 3)), 0, 255).astype(np.uint8)
    return [Example("plate", "good", plate, None, f"{index}.png") for index, plate in enumerate(plates)]
