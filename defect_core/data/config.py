"""Settings of the stages `ingest` and `split` (no torch)."""

from typing import Any, Literal

from pydantic import Field

from defect_core.settings import Settings

NEVER_CHANGING_FILE = "data/README.md"


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

    def tracked_input(self, product: str) -> str:
        """Return the path that the stage `ingest` depends on (see `source_input`)."""
        return source_input(product, self.path)


def source_input(product: str, path: str | None) -> str:
    """Return the file or folder that DVC tracks for a source.

    This is the folder itself, the recorded listing of a URL, or a file that never changes for a demo product.
    """
    if path is not None and "://" in path:
        return f"data/source/{product}.json"
    return path or NEVER_CHANGING_FILE


class IngestConfig(Settings):
    """How real images are read."""

    min_per_defect: int = Field(default=3, ge=2)
    """Smallest number of usable examples of a defect type."""


class SplitConfig(Settings):
    """Which real images are used for training and which for testing."""

    policy: Literal["first_third", "half", "two_fold"] = "first_third"
    """How the defect images are divided (see `defect_core.data.splits`)."""
    fold: int = Field(default=0, ge=0, le=1)
    """Which fold trains; used by `two_fold` only."""
    min_train: int = Field(default=1, ge=1)
    """Smallest number of training examples of a defect type."""
    max_train: int | None = Field(default=None, ge=1)
    """Largest number of training examples of a defect type (k-shot); None: no limit."""
