"""Thresholds of the image score from cross-fitted scores of the training images; no test image is used.

The real training defects and the normal training images are divided into folds. A model is trained without each fold,
with fewer steps, and scores the images of that fold. Synthetic pairs made from an image of the fold are left out. The
generators themselves were trained on all real defects, so scores of held-out defects are too good in arms with pairs.
The thresholds therefore use the scores of held-out normal images only.

A model of a fold sees fewer defects, so its scores have another level than those of the final model: thresholds on its
raw scores rejected 17 % of the normal images of `flange` instead of 5 %. So each logit is standardised with mean and
standard deviation of the logits of the normal images that its model was trained on, and mapped back with those of the
final model of each seed. This rule is not from a paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import ArmData, ImageInfo, Sample, SomeSamples, TrainingImages
from defect_core.evaluation.segmentation.evaluate import Evaluation, ScoreMapModel, score_window
from defect_core.evaluation.segmentation.tiles import predict_tiled
from defect_core.evaluation.segmentation.train import train_segmenter
from defect_core.metrics.localisation import image_score
from defect_core.metrics.operating_point import OVERKILL_TARGETS, OperatingPoint, overkill_threshold

RULE = (
    "quantiles of the standardised logits of held-out normal training images (cross-fitting), mapped to each seed's "
    "model by mean and standard deviation of the logits of its normal training images"
)
_MARGIN = 1e-7  # scores of 0 and 1 have no finite logit
_MIN_FOR_SPREAD = 5
_MIN_SPREAD = 1e-3
_BATCH = 64

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class CrossFit:
    """Scores of training images by models that were not trained on them.

    Attributes:
        normal: standardised logits of the image scores of the held-out normal images `[N]`.
        defect: the same of the held-out real defects `[D]`, in the order of `TrainingImages.real`.
        folds: number of folds.
        steps: optimiser steps of each model of a fold.
    """

    normal: FloatArray
    defect: FloatArray
    folds: int
    steps: int

    def thresholds(self, model: ScoreMapModel, data: ArmData, score_mode: str) -> dict[str, OperatingPoint]:
        """Return the threshold of a trained model for each overkill target, by `target_key`.

        Args:
            model: the final model, trained on all images of `data`.
            data: images of the arm.
            score_mode: `segment.image_score`.
        """
        images = _require_training(data)
        mean, spread = _level(score_images(model, SomeSamples(images.normal, images.trained_normal), data, score_mode))
        scores = expit(self.normal * spread + mean)
        return {target_key(target): overkill_threshold(scores, target) for target in OVERKILL_TARGETS}


def target_key(target: float) -> str:
    """Return the key of an overkill target in JSON, such as `0.01`."""
    return f"{target:g}"


def missing_for_folds(data: ArmData, folds: int) -> str:
    """Return in one line what cross-fitting lacks, "" if nothing."""
    if not folds:
        return "segment.folds is 0; expected at least 2 for thresholds"
    if data.training is None:
        return "cross-fitting is not available for this downstream model"
    counts = {
        "real training defect": len({info.unit for info in data.training.real_info}),
        "normal training": len({info.unit for info in data.training.normal_info}),
    }
    for what, count in counts.items():
        if count < folds:
            return (
                f"segment.folds is {folds}: needs {folds} {what} images of different groups, found {count}; "
                "add images, or set segment.folds: 0"
            )
    return ""


def cross_fit(data: ArmData, config: SegmenterConfig, seed: int, label: str, device: str = "cpu") -> CrossFit:
    """Train one segmenter per fold without its images, and score them.

    Args:
        data: images of the arm, for which `missing_for_folds` returns "".
        config: settings of the training; `image_size` is the side of the training images.
        seed: of the trainings.
        label: shown with the progress.
        device: torch device.
    """
    images = _require_training(data)
    real_folds = assign_folds(images.real_info, config.folds)
    normal_folds = assign_folds(images.normal_info, config.folds)
    steps = max(1, round(config.steps * config.fold_steps))
    normal, defect = np.zeros(len(normal_folds)), np.zeros(len(real_folds))
    for fold in range(config.folds):
        held_names = {i.name for i, f in zip(images.real_info, real_folds, strict=True) if f == fold}
        held_names |= {i.name for i, f in zip(images.normal_info, normal_folds, strict=True) if f == fold}
        model = train_segmenter(
            *_training_part(data, images, held_names),
            config.model_copy(update={"steps": steps, "validation_fraction": 0.0}),
            seed,
            f"thresholds {label}, fold {fold + 1}/{config.folds}",
            device,
            data.crops,
        ).model
        trained = [i for i in images.trained_normal if normal_folds[i] != fold]
        mean, spread = _level(score_images(model, SomeSamples(images.normal, trained), data, config.image_score))
        for samples, folds, scores in ((images.normal, normal_folds, normal), (images.real, real_folds, defect)):
            held = [i for i, f in enumerate(folds) if f == fold]
            logits = _logits(score_images(model, SomeSamples(samples, held), data, config.image_score))
            scores[held] = (logits - mean) / spread
    return CrossFit(normal, defect, config.folds, steps)


def assign_folds(images: Sequence[ImageInfo], folds: int) -> list[int]:
    """Return the fold of each image; images of one unit have one fold, and defect types are spread over the folds.

    Args:
        images: the images.
        folds: number of folds.
    """
    of_unit: dict[str, int] = {}
    for image in sorted(images, key=lambda image: image.defects):
        of_unit.setdefault(image.unit, len(of_unit) % folds)
    return [of_unit[image.unit] for image in images]


def score_images(model: ScoreMapModel, samples: Sequence[Sample], data: ArmData, score_mode: str) -> FloatArray:
    """Return the image score of each whole image `[N]`, with tiles if the arm has a working resolution."""
    scores: list[float] = []
    if data.scale is not None:
        window = score_window(data.scale.tile, score_mode)
        scores = [image_score(predict_tiled(model, sample.image, data.scale), window) for sample in samples]
    else:
        for start in range(0, len(samples), _BATCH):
            maps = model.predict(np.stack([sample.image for sample in samples[start : start + _BATCH]]))
            scores += [image_score(each, score_window(maps.shape[-1], score_mode)) for each in maps]
    return np.array(scores, np.float64)


def stored_thresholds(data: ArmData, config: SegmenterConfig, evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of `thresholds.json`, which is stored beside the weights of the model that was evaluated.

    Returns:
        `image_score` and `window` (side of its pooling window in pixels), `rule`, and `thresholds`: by overkill target
        `threshold` (six digits), `support` and `note`. `reason` and no thresholds if there are none.
    """
    if not evaluation.thresholds:
        return {"reason": missing_for_folds(data, config.folds), "thresholds": {}}
    side = data.scale.tile if data.scale is not None else data.test[0].mask.shape[0]
    return {
        "image_score": config.image_score,
        "window": score_window(side, config.image_score),
        "rule": RULE,
        "thresholds": {
            key: {
                "threshold": None if point.threshold is None else round(point.threshold, 6),
                "support": point.support,
                "note": point.note,
            }
            for key, point in evaluation.thresholds.items()
        },
    }


def _training_part(
    data: ArmData, images: TrainingImages, held: set[str]
) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Return real, normal and synthetic training samples without what comes from the held-out images."""
    names = [info.name for info in images.real_info]
    normal_names = [images.normal_info[i].name for i in images.trained_normal] + [names[i] for i in images.place_owner]
    return (
        _kept(data.real, [{name} for name in names], held, data.crops),
        _kept(data.normal, [{name} for name in normal_names], held, data.crops),
        _kept(data.synthetic, images.synthetic_sources, held, data.crops),
    )


def _kept(
    samples: Sequence[Sample], sources: Sequence[set[str] | frozenset[str]], held: set[str], crops: int
) -> list[Sample]:
    """Return the samples, `crops` in a row for each of `sources`, that come from no held-out image."""
    return [
        sample
        for number, names in enumerate(sources)
        if not names & held
        for sample in samples[number * crops : (number + 1) * crops]
    ]


def _require_training(data: ArmData) -> TrainingImages:
    if data.training is None:
        raise ValueError("data.training: None; expected the training images of the arm")
    return data.training


def _level(scores: FloatArray) -> tuple[float, float]:
    """Return mean and standard deviation of the logits of scores; 1 instead of the deviation of too few scores."""
    logits = _logits(scores)
    spread = float(logits.std()) if len(logits) >= _MIN_FOR_SPREAD else 1.0
    return float(logits.mean()), max(spread, _MIN_SPREAD)


def _logits(scores: FloatArray) -> FloatArray:
    return logit(np.clip(scores, _MARGIN, 1 - _MARGIN))
