"""Protocols of papers as settings of params.yaml, so that a table can say which one it follows.

A preset writes ordinary keys: the file then says all, and every key may be changed afterwards. What a preset cannot say
is listed in `NOT_SAID`; numbers obtained with one are comparable with each other, and with the paper only as far as
segmenter and clusters are the same.
"""

from typing import Any

from defect_core.errors import InputError
from defect_core.project import Project

_COMMON: dict[str, dict[str, Any]] = {
    "score": {"image_size": 256},
    # 200 epochs of 500 samples, half of them good, in batches of 8
    "segment": {"image_size": 256, "steps": 12500, "batch_size": 8, "synthetic_fraction": 1.0, "seeds": [0, 1, 2]},
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "anomalydiffusion": {
        **_COMMON,
        "split": {"policy": "first_third", "min_train": 1},
        "synthesize": {"per_defect": 1000},
    },
    "cadiff": {
        **_COMMON,
        "split": {"policy": "first_third", "min_train": 1},
        "synthesize": {"per_defect": 1000},
    },
    "seas": {
        **_COMMON,
        "split": {"policy": "first_third", "min_train": 1},
        "synthesize": {"per_defect": 1000},
        "segment": {**_COMMON["segment"], "architecture": "upernet"},
    },
    "ddim-inversion": {
        **_COMMON,
        "split": {"policy": "two_fold", "fold": 0},
        "synthesize": {"per_defect": 100},
    },
    "defectdiffu": {
        **_COMMON,
        "split": {"policy": "half"},
        "segment": {**_COMMON["segment"], "synthetic_fraction": 0.67},
    },
}

NOT_SAID = {
    "anomalydiffusion": "the paper's segmenter starts at random; here it starts from ImageNet",
    "cadiff": "the paper's segmenter starts at random; here it starts from ImageNet",
    "seas": "the paper trains one segmenter over all products; here it is one per product",
    "ddim-inversion": "run again with split.fold: 1 and average the two tables",
    "defectdiffu": "set synthesize.per_defect to twice the number of real training images of a defect",
}


def apply_preset(project: Project, name: str) -> str:
    """Write a preset's keys into params.yaml, keeping its comments and all other keys; dvc.yaml follows.

    Returns:
        What the preset cannot say.

    Raises:
        InputError: an unknown name; nothing is changed.
    """
    from defect_core import dvcfile
    from defect_core.scaffold import edited_params

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
