"""Settings of the stages `ingest` and `split` (no torch)."""

import os
from typing import Any, Literal

from pydantic import Field

from defect_core.settings import Settings

NEVER_CHANGING_FILE = "data/README.md"
SOURCE_REMOTE = "defectory-sources"
"""Remote of DVC whose folder has one link per source outside the project (see `defect_core.graph.source_links`)."""


class SourceConfig(Settings):
    """Where the real images of a product come from: one entry of `sources` in params.yaml."""

    path: str | None = None
    """A folder, relative to the project, or a URL that fsspec reads. None for `layout: demo`."""
    layout: str = "auto"
    """Name of the folder layout; `auto` detects it (see `defect_core.data.layouts`)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the layout."""
    empty_masks: Literal["error", "leave_out"] = "error"
    """What to do with a defect image whose mask is empty."""
    missing_masks: Literal["error", "leave_out", "normal"] = "error"
    """What to do with a defect image without a mask; `normal` reads it as a normal image."""

    def tracked_input(self, product: str) -> str:
        """Return the path that the stage `ingest` depends on (see `source_input`)."""
        return source_input(product, self.path)


def source_input(product: str, path: str | None) -> str:
    """Return the file or folder that DVC tracks for a source.

    This is a folder inside the project, a link to a folder outside it, the recorded listing of a URL, or a file that
    never changes for a demo product. DVC reads the link through a remote, because a relative path to the outside is
    wrong in the temporary workspace of an experiment.
    """
    if path is None:
        return NEVER_CHANGING_FILE
    if "://" in path:
        return f"data/source/{product}.json"
    return f"remote://{SOURCE_REMOTE}/{product}" if is_outside(path) else path


def is_outside(path: str) -> bool:
    """Return whether a path of a source, relative to the project, leaves the project."""
    normal = os.path.normpath(path)
    return os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir


class IngestConfig(Settings):
    """How real images are read."""

    min_per_defect: int = Field(default=3, ge=2)
    """Smallest number of usable examples of a defect type."""


class SplitConfig(Settings):
    """Which real images are used for training and which for testing."""

    policy: Literal["first_third", "half", "two_fold", "stable"] = "first_third"
    """How the defect images are divided (see docs/data.md); `stable` is for data that grows."""
    fold: int = Field(default=0, ge=0, le=1)
    """Which fold trains; used by `two_fold` only."""
    min_train: int = Field(default=1, ge=1)
    """Smallest number of training examples of a defect type."""
    max_train: int | None = Field(default=None, ge=1)
    """Largest number of training examples of a defect type (k-shot); None: no limit."""
    train_fraction: float = Field(default=1 / 3, gt=0, lt=1)
    """Fraction of the defect images, and of the groups, that trains; used by `stable` only."""
    near_duplicates: Literal["warn", "group", "ignore"] = "warn"
    """What to do with images that look the same: warn if they are on both sides, keep them on one side, or nothing."""
