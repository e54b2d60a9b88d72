"""Protocols of papers as settings of params.yaml, so that a table can say which one it follows.

A preset writes ordinary keys: the file then says all, and every key may be changed afterwards. What a preset cannot say
is listed in `NOT_SAID`; numbers obtained with one are comparable with each other, and with the paper only as far as
that goes.
"""

from typing import Any

from defect_core.errors import InputError
from defect_core.project.paths import Project

# AnomalyDiffusion's segmenter: 200 epochs of 500 images, half of them good, in batches of 8, from random weights, 1e-4;
# image score: the highest mean of a window of 21 px. CADiff and DDIM inversion follow it.
_UNET: dict[str, Any] = {
    "image_size": 256,
    "steps": 12500,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "architecture": "unet",
    "encoder": "vgg13_bn",  # two 3x3 convolutions per level: the nearest there is to a plain U-Net
    "encoder_weights": "none",
    "frozen_stages": 0,
    "synthetic_fraction": 1.0,
    "image_score": "max_of_mean",
    "seeds": [0, 1, 2],
}
# 30 epochs of 5 N images in batches of 8, where N is taken as the 1000 generated per defect
_CLASSIFY: dict[str, Any] = {
    "image_size": 256,
    "steps": 18750,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "architecture": "resnet34",
    "view": "image",
    "synthetic_fraction": 1.0,
    "seeds": [0, 1, 2],
}
_ANOMALYDIFFUSION: dict[str, dict[str, Any]] = {
    "score": {"image_size": 256},
    "split": {"policy": "first_third", "min_train": 1},
    "synthesize": {"per_defect": 1000},
    "segment": _UNET,
    "classify": _CLASSIFY,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "anomalydiffusion": _ANOMALYDIFFUSION,
    "cadiff": _ANOMALYDIFFUSION,
    # one segmenter over all products, IoU, image score: the highest value of the map
    "seas": {
        "score": {"image_size": 256},
        "split": {"policy": "first_third", "min_train": 1},
        "synthesize": {"per_defect": 1000},
        "segment": {
            **_UNET,
            "architecture": "upernet",
            "encoder": "tu-tf_efficientnet_lite0",
            "encoder_weights": "embedded",
            "image_score": "max",
        },
        "segment_unified": {},
    },
    # real, synthetic and good images; both halves test in turn
    "ddim-inversion": {
        "score": {"image_size": 256},
        "split": {"policy": "two_fold", "fold": 0},
        "synthesize": {"per_defect": 100},
        "segment": {**_UNET, "synthetic_fraction": "pooled"},
    },
    # real images and twice as many synthetic ones, 512 px
    "defectdiffu": {
        "score": {"image_size": 512},
        "split": {"policy": "half", "min_train": 1},
        "synthesize": {"per_defect": "2x"},
        "segment": {**_UNET, "image_size": 512, "synthetic_fraction": "pooled"},
    },
}

_OURS = "the U-Net has a VGG-13's encoder and a one-cycle rate; DRAEM's has six levels and a rate that falls twice"
NOT_SAID = {
    "anomalydiffusion": f"{_OURS}; the paper's ResNet-34 starts from ImageNet, which needs a file in classify.weights",
    "cadiff": f"{_OURS}; the paper's ResNet-34 starts from ImageNet, which needs a file in classify.weights",
    "seas": "the paper's UPerNet has a ResNet-50, ours EfficientNet-Lite0; its steps, rate and IoU threshold are "
    "unpublished, and are those of the other protocols (per product) and 0.5 here",
    "ddim-inversion": f"it is one fold: run again with split.fold: 1, then `defectory average-folds`; {_OURS}",
    "defectdiffu": f"the paper says neither which half trains (here the first) nor for how long; {_OURS}",
}


def apply_preset(project: Project, name: str) -> str:
    """Write a preset's keys into params.yaml, keeping its comments and all other keys; dvc.yaml follows.

    Returns:
        What the preset cannot say.

    Raises:
        InputError: an unknown name; nothing is changed.
    """
    from defect_core.cli.scaffold import edited_params
    from defect_core.graph import dvcfile

    if name not in PRESETS:
        raise InputError(f"protocol {name!r} is unknown; expected one of {', '.join(PRESETS)}")
    with edited_params(project) as content:
        for section, values in PRESETS[name].items():
            kept = dict(content.get(section) or {})
            if section == "split":
                kept = {}  # a policy of another protocol must leave nothing behind, such as a cap on examples
            content[section] = {**kept, **values}
    dvcfile.sync(Project(project.root))
    return NOT_SAID[name]
