"""The contact sheet of a product: zoomed crops with outlines, one labelled block per defect type."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from defect_core.cli.source_examples import crop_around
from defect_core.data.records import save_png
from defect_core.generators.base import Example
from defect_core.project.paths import Project
from defect_core.report.sheets import contact_sheet

CELL = 160
COLUMNS = 6
_TITLE_HEIGHT = 18
_INK = (30, 30, 30)


def write_sheet(project: Project, name: str, blocks: Sequence[tuple[str, Sequence[Example]]]) -> Path:
    """Write a contact sheet to `.defectory/sheets/<name>.png`.

    Args:
        project: the project.
        name: stem of the file.
        blocks: a title of ASCII characters and the examples below it.

    Returns:
        The path of the file.
    """
    path = project.state / "sheets" / f"{name}.png"
    save_png(render_blocks(blocks), path)
    return path


def render_blocks(blocks: Sequence[tuple[str, Sequence[Example]]]) -> NDArray[np.uint8]:
    """Return one picture [H, W, 3] with a title and a contact sheet of zoomed crops per block."""
    parts: list[NDArray[np.uint8]] = []
    for title, examples in blocks:
        crops = [crop_around(example) for example in examples]
        sheet = contact_sheet([image for image, _ in crops], [mask for _, mask in crops], COLUMNS, CELL)
        parts += [_render_title(title), sheet]
    width = max((part.shape[1] for part in parts), default=CELL)
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in parts]
    return np.concatenate(padded) if padded else np.full((CELL, CELL, 3), 255, np.uint8)


def _render_title(title: str) -> NDArray[np.uint8]:
    plain = title.encode("ascii", "replace").decode()
    strip = Image.new("RGB", (CELL * COLUMNS, _TITLE_HEIGHT), "white")
    ImageDraw.Draw(strip).text((4, 3), plain, fill=_INK)
    return np.array(strip)
