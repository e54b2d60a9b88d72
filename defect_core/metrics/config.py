"""Settings of the stage `score` (no torch)."""

from pydantic import Field

from defect_core.settings import Settings


class ScoreConfig(Settings):
    """How synthetic images are scored."""

    image_size: int = Field(default=128, ge=32)
    """Side in pixels to which images are resized before features are extracted."""
