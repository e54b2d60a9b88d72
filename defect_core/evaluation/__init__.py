"""Downstream models that are trained and tested on each arm: segmenter, classifier and anomaly detectors.

This package contains one package per downstream model, the parts that they share (`batches`, `training`, `weights`),
and the decision of the release gate. It knows no project and no stage: functions take images and settings.
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classification.config": ["ClassifierConfig"],
        "classification.data": ["View", "load_views"],
        "classification.measure": ["ClassifierData", "measure_classifier"],
        "classification.train": ["Classifier", "train_classifier"],
        "detection.config": ["DetectorConfig"],
        "detection.measure": ["DetectorData", "measure_detector"],
        "release": ["ReleaseConfig", "decide"],
        "segmentation.config": ["SegmenterConfig"],
        "segmentation.data": ["ArmData", "Sample", "load_samples"],
        "segmentation.evaluate": ["Evaluation", "evaluate_segmenter"],
        "segmentation.measure": ["measure_segmenter", "resolve_config"],
        "segmentation.model": ["Segmenter", "load_segmenter", "save_segmenter"],
        "segmentation.train": ["train_segmenter"],
    },
)

if TYPE_CHECKING:
    from defect_core.evaluation.classification.config import ClassifierConfig as ClassifierConfig
    from defect_core.evaluation.classification.data import View as View
    from defect_core.evaluation.classification.data import load_views as load_views
    from defect_core.evaluation.classification.measure import ClassifierData as ClassifierData
    from defect_core.evaluation.classification.measure import measure_classifier as measure_classifier
    from defect_core.evaluation.classification.train import Classifier as Classifier
    from defect_core.evaluation.classification.train import train_classifier as train_classifier
    from defect_core.evaluation.detection.config import DetectorConfig as DetectorConfig
    from defect_core.evaluation.detection.measure import DetectorData as DetectorData
    from defect_core.evaluation.detection.measure import measure_detector as measure_detector
    from defect_core.evaluation.release import ReleaseConfig as ReleaseConfig
    from defect_core.evaluation.release import decide as decide
    from defect_core.evaluation.segmentation.config import SegmenterConfig as SegmenterConfig
    from defect_core.evaluation.segmentation.data import ArmData as ArmData
    from defect_core.evaluation.segmentation.data import Sample as Sample
    from defect_core.evaluation.segmentation.data import load_samples as load_samples
    from defect_core.evaluation.segmentation.evaluate import Evaluation as Evaluation
    from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter as evaluate_segmenter
    from defect_core.evaluation.segmentation.measure import measure_segmenter as measure_segmenter
    from defect_core.evaluation.segmentation.measure import resolve_config as resolve_config
    from defect_core.evaluation.segmentation.model import Segmenter as Segmenter
    from defect_core.evaluation.segmentation.model import load_segmenter as load_segmenter
    from defect_core.evaluation.segmentation.model import save_segmenter as save_segmenter
    from defect_core.evaluation.segmentation.train import train_segmenter as train_segmenter
