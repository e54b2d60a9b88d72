"""Real examples of a gray plate with a dark dent and a bright scratch, 64 px, for tests of the generators."""

import numpy as np

from defect_core.generators.base import Example

DEFECTS = ("dent", "scratch")
GREY_LEVELS = (30, 230)


def plate(rng):
    """Return a normal image with noise."""
    return np.clip(128 + rng.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8)


def plate_examples(normal_count, rows, columns):
    """Return normal examples, then one example per defect with a rectangular mask of these rows and columns."""
    rng = np.random.default_rng(0)
    examples = [Example("plate", "good", plate(rng), None, f"good/{index}.png") for index in range(normal_count)]
    for defect, grey_level in zip(DEFECTS, GREY_LEVELS, strict=True):
        image, mask = plate(rng), np.zeros((64, 64), bool)
        mask[rows, columns] = True
        image[mask] = grey_level
        examples.append(Example("plate", defect, image, mask, f"{defect}/0.png"))
    return examples
