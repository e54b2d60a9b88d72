"""The downstream judge: a small segmentation network, trained once per arm and seed and tested on real images."""

from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import Sample, load_samples

__all__ = ["Sample", "SegmenterConfig", "load_samples"]
