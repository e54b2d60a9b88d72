"""Files with initial weights that the user provides."""

import os
from pathlib import Path

from defect_core.errors import InputError


def find_weights(name: str, folder: Path | None, setting: str, expected: str) -> Path:
    """Return the file `name` in `folder`, or else in the folder of the environment variable DEFECTORY_WEIGHTS.

    Args:
        name: file name, or path relative to one of the folders.
        folder: folder of the project; None to search only DEFECTORY_WEIGHTS.
        setting: the setting with the name, for the error message.
        expected: what is expected there, for the error message.

    Raises:
        InputError: the file is in neither folder.
    """
    for parent in (folder, os.environ.get("DEFECTORY_WEIGHTS")):
        if parent and (Path(parent) / name).is_file():
            return Path(parent) / name
    raise InputError(f"{setting}: {name} is neither in the project nor in DEFECTORY_WEIGHTS; expected {expected}")
