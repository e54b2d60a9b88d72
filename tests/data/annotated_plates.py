"""Data sets for the tests of annotations: grey plates, and the pixels that an annotation must give."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)
TOP, LEFT, HEIGHT, WIDTH = 10, 20, 12, 8
CORNERS = [[LEFT, TOP], [LEFT + WIDTH, TOP], [LEFT + WIDTH, TOP + HEIGHT], [LEFT, TOP + HEIGHT]]
"""Outline of the spot in coordinates of pixel corners."""
CENTERS = [
    [LEFT, TOP],
    [LEFT + WIDTH - 1, TOP],
    [LEFT + WIDTH - 1, TOP + HEIGHT - 1],
    [LEFT, TOP + HEIGHT - 1],
]
"""Outline of the spot in coordinates of pixel centres, as `cv2.findContours` gives it."""


def spot() -> np.ndarray:
    """Return the mask of the spot."""
    mask = np.zeros(SIZE, bool)
    mask[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH] = True
    return mask


def save_plate(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(SIZE, value, np.uint8)).save(path)
    return path


def save_mask(path: Path, mask: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask
    Image.fromarray(array, mode).save(path) if mode else Image.fromarray(array).save(path)
    return path


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def flat(points: list[list[float]]) -> list[float]:
    return [value for point in points for value in point]


def coco(
    *annotations: dict, names: tuple[str, ...] = ("scratch", "dent"), images: tuple[str, ...] = ("a.png",)
) -> dict:
    """Return COCO with images numbered from 1, and annotations of image 1 and category 1 unless they say otherwise."""
    return {
        "images": [
            {"id": index, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for index, name in enumerate(images, 1)
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, 1)],
        "annotations": [
            {"id": index, "image_id": 1, "category_id": 1, "iscrowd": 0, **one} for index, one in enumerate(annotations)
        ],
    }
