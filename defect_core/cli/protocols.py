"""Evaluation protocols of the papers as settings of params.yaml.

A protocol is written as ordinary keys, so the file shows all of it and every key may be changed afterwards.
`DIFFERENCES` lists what cannot be expressed. Results with a protocol are comparable with each other, and with the paper
up to these differences.
"""

from typing import Any

from defect_core.cli.transaction import edited_params
from defect_core.errors import InputError, suggest
from defect_core.graph.dvcfile import sync
from defect_core.project.paths import Project

# Segmenter of AnomalyDiffusion (Hu et al. 2024), also used by CADiff and disentangled DDIM inversion: 200 epochs of 500
# images, half of them normal, batches of 8, random weights, rate 1e-4. Image score: maximum mean of a 21 px window.
_UNET: dict[str, Any] = {
    "image_size": 256,
    "steps": 12500,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "architecture": "unet",
    "encoder": "vgg13_bn",  # Two 3x3 convolutions per level, closest to a plain U-Net.
    "encoder_weights": "none",
    "frozen_stages": 0,
    "synthetic_fraction": 1.0,
    "image_score": "max_of_mean",
    "seeds": [0, 1, 2],
}
# 30 epochs of 5 N images in batches of 8; N is taken as the 1000 generated images per defect type.
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

PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    "anomalydiffusion": _ANOMALYDIFFUSION,
    "cadiff": _ANOMALYDIFFUSION,
    # One segmenter over all products, IoU; image score: maximum of the map.
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
    # Real, synthetic and normal images; each half is tested in turn.
    "ddim-inversion": {
        "score": {"image_size": 256},
        "split": {"policy": "two_fold", "fold": 0},
        "synthesize": {"per_defect": 100},
        "segment": {**_UNET, "synthetic_fraction": "pooled"},
    },
    # Real images and twice as many synthetic ones, 512 px.
    "defectdiffu": {
        "score": {"image_size": 512},
        "split": {"policy": "half", "min_train": 1},
        "synthesize": {"per_defect": "2x"},
        "segment": {**_UNET, "image_size": 512, "synthetic_fraction": "pooled"},
    },
}

_UNET_DIFFERENCE = (
    "our U-Net has the encoder of VGG-13 and a one-cycle rate; DRAEM's has six levels and a rate that falls twice"
)
_CLASSIFIER_DIFFERENCE = "the paper's ResNet-34 starts from ImageNet, which needs a weights file in classify.weights"
DIFFERENCES = {
    "anomalydiffusion": f"{_UNET_DIFFERENCE}; {_CLASSIFIER_DIFFERENCE}",
    "cadiff": f"{_UNET_DIFFERENCE}; {_CLASSIFIER_DIFFERENCE}",
    "seas": "the paper's UPerNet has a ResNet-50, ours EfficientNet-Lite0; its steps, rate and IoU threshold are "
    "unpublished; here they are those of the other protocols (per product) and 0.5",
    "ddim-inversion": "this is one fold: run again with split.fold: 1, then `defectory average-folds`; "
    f"{_UNET_DIFFERENCE}",
    "defectdiffu": "the paper does not say which half is used for training (here the first) nor for how long; "
    f"{_UNET_DIFFERENCE}",
}


def apply_protocol(project: Project, name: str) -> str:
    """Write the keys of a protocol into params.yaml, keep its comments and other keys, and update dvc.yaml.

    Returns:
        How the protocol differs from the paper's.

    Raises:
        InputError: an unknown name; nothing is changed.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name!r} is unknown; {suggest(name, PROTOCOLS)}")
    with edited_params(project) as content:
        for section, values in PROTOCOLS[name].items():
            kept = dict(content.get(section) or {})
            if section == "split":
                kept = {}  # Keys of another protocol, such as a limit on examples, must not remain.
            content[section] = {**kept, **values}
    sync(Project(project.root))
    return DIFFERENCES[name]
