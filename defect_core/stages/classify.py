"""classify: a classifier of the defect types of one product per arm, into `data/classify/<product>/<arm>` and
`metrics/classify/`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from defect_core.data.manifest import read_manifest
from defect_core.errors import InputError
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.classification.data import View, load_views
from defect_core.evaluation.classification.evaluate import answer_intervals, score_answers
from defect_core.evaluation.classification.train import find_weights, save_classifier, train_classifier
from defect_core.evaluation.segmentation.data import hold_out, synthetic_share
from defect_core.metrics.spread import over_seeds
from defect_core.project.loading import split_records_of, this_device
from defect_core.project.params import Classify
from defect_core.project.paths import Project, write_json


def run(project: Project, product: str, arm: str) -> None:
    settings, chosen = project.params.classify, project.params.arm(arm)
    config = classifier_config(settings, chosen.fraction)
    train, test = (
        [record for record in split_records_of(project, product, side) if record.mask is not None]
        for side in ("train", "test")
    )
    classes = sorted({record.defect for record in train})
    raw = project.path(f"data/raw/{product}")
    result: dict[str, Any] = {"product": product, "arm": arm, "classes": classes}
    with project.building(f"data/classify/{product}/{arm}", {"settings": settings.model_dump(), "arm": arm}) as work:
        if len(classes) < 2:
            # there is nothing to tell apart; the published tables leave such products out too
            reason = f"{product} has {len(classes)} defect type(s) to train on; expected at least 2"
            names = ("accuracy", "balanced_accuracy")
            result |= {"mean": dict.fromkeys(names), "std": dict.fromkeys(names), "per_seed": [], "protocol": {}}
            result |= {"interval": dict.fromkeys(names), "reasons": dict.fromkeys(names, reason)}
            (work / "answers.json").write_text("[]\n")
        else:
            real = load_views(train, raw, classes, config)
            tested = load_views(test, raw, classes, config)
            made = [
                view
                for generator in chosen.generators
                for view in _accepted(project, project.path(f"data/synthetic/{product}/{generator}"), classes, config)
            ]
            result |= _measure(project, settings, config, (real, made, tested), classes, work, f"{product} {arm}")
            result["protocol"]["left_out"] = len(test) - len(tested)
    write_json(project.path(f"metrics/classify/{product}/{arm}.json"), result)


def classifier_config(settings: Classify, fraction: float | None = None) -> ClassifierConfig:
    """The classifier that params.yaml asks for; `fraction` goes before its synthetic fraction."""
    return ClassifierConfig(
        image_size=settings.image_size,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        architecture=settings.architecture,
        view=settings.view,
        synthetic_fraction=settings.synthetic_fraction if fraction is None else fraction,
        validation_fraction=settings.validation_fraction,
    )


def _measure(
    project: Project,
    settings: Classify,
    config: ClassifierConfig,
    views: tuple[list[View], list[View], list[View]],
    classes: list[str],
    work: Path,
    label: str,
) -> dict[str, Any]:
    real, made, tested = views
    weights = None if settings.weights is None else find_weights(settings.weights, project.root)
    truth = np.array([view.label for view in tested], int)
    pixels = np.stack([view.image for view in tested]) if tested else None
    base = project.params.seed
    given: dict[str, list[np.ndarray]] = {"last": [], "best": []}
    answers, curves = [], []
    for number, seed in enumerate(settings.seeds):
        shown = f"classifier {label}, seed {seed} ({number + 1}/{len(settings.seeds)})"
        trained = train_classifier(real, made, len(classes), config, base * 1000 + seed, weights, shown, this_device())
        curves.append({"seed": seed, "points": trained.curve})
        for which, model in (("last", trained.model), ("best", trained.best)):
            if model is not None:
                given[which].append(truth[:0] if pixels is None else model.predict(pixels).argmax(1))
        answers.append({"seed": seed, "truth": truth.tolist(), "answers": given["last"][-1].tolist()})
        if number == 0:
            save_classifier(trained.model, config, classes, work / "classifier.safetensors")
    (work / "answers.json").write_text(json.dumps(answers, sort_keys=True) + "\n")
    (work / "curves.json").write_text(json.dumps(curves, indent=2, sort_keys=True) + "\n")
    learned = len(hold_out(real, config.validation_fraction)[0])
    result = _summarise(settings, truth, given["last"], classes, base)
    result["protocol"] = {
        "train_defects": len(real),
        "validation_defects": len(real) - learned,
        "synthetic": len(made),
        "synthetic_share": round(synthetic_share(config.synthetic_fraction, learned, len(made)), 4),
        "defect_images": {name: int((truth == number).sum()) for number, name in enumerate(classes)},
        "good_images": "none, in training and in test",
        "image_size": config.image_size,
        "view": "whole images" if config.view == "image" else "squares around the true masks, of test images too",
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seeds": len(settings.seeds),
        "network": f"{config.architecture}, weights: {_named(settings.weights, weights)}",
        "model": "of the last step",
        "interval": "95 % of the means over seeds, test images drawn with replacement",
    }
    if len(given["best"]) == len(given["last"]):
        result["best_on_validation"] = _summarise(settings, truth, given["best"], classes, base)
    return result


def _summarise(
    settings: Classify, truth: np.ndarray, answers: list[np.ndarray], classes: list[str], base: int
) -> dict[str, Any]:
    scores = [score_answers(truth, given, classes) for given in answers]
    found = over_seeds(scores)
    intervals = answer_intervals(truth, answers, classes, base)
    return {
        **found._asdict(),
        "interval": {name: None if value is None else intervals.get(name) for name, value in found.mean.items()},
        "per_seed": [{"seed": seed, **score} for seed, score in zip(settings.seeds, scores, strict=True)],
    }


def _accepted(project: Project, folder: Path, classes: list[str], config: ClassifierConfig) -> list[View]:
    rows = [row for row in read_manifest(folder / "manifest.parquet") if row.accepted]
    if not rows:
        where = folder.relative_to(project.root).as_posix()
        raise InputError(f"{where}: holds no accepted pair; expected at least one")
    return load_views(rows, folder, classes, config)


def _named(name: str | None, file: Path | None) -> str:
    return "none" if file is None else f"{name}, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
