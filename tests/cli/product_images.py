"""Images of a product in the layout `folder`, made by code, and calls of the command."""

import sys

import numpy as np
import pytest

from defect_core.cli import app as cli
from defect_core.data.records import save_png


def call(monkeypatch, capsys, *arguments):
    """Return exit status, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["defectory", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


def write_images(folder, normals=6, defects=(("dent", 4),), size=(40, 40), spot=10, start=0):
    """Write normal images in `good`, and images with masks beside them in one folder per defect type."""
    for number in range(normals):
        save_png(_texture(start + number, size), folder / f"good/{number}.png")
    for kind, (defect, count) in enumerate(defects):
        for number in range(count):
            image, mask = _texture(start + 1000 * (kind + 1) + number, size), np.zeros(size, np.uint8)
            mask[10 : 10 + spot, 5 + number : 5 + number + spot] = 255
            image[mask > 0] = 250
            save_png(image, folder / f"{defect}/{number}.png")
            save_png(mask, folder / f"{defect}/{number}_mask.png")
    return folder


def listing(folder):
    """Return all files below a folder with their content, without what git and DVC keep for themselves."""
    skipped = {".git", "tmp"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not skipped & set(path.relative_to(folder).parts)
    }


def _texture(seed, size):
    values = np.random.default_rng(seed).integers(80, 120, (size[0] // 4 + 1, size[1] // 4 + 1, 3), np.uint8)
    return np.repeat(np.repeat(values, 4, 0), 4, 1)[: size[0], : size[1]].copy()
