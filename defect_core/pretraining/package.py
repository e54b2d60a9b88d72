"""Replace an embedded weights folder of the package by a newly trained one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from defect_core.data.files import replace_folder

MODEL_CARD = "MODEL_CARD.md"


@contextmanager
def rewrite_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` in one rename at the end; the model card is kept."""
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    if (folder / MODEL_CARD).is_file():
        shutil.copy(folder / MODEL_CARD, new)
    replace_folder(new, folder)
