"""Small settings and examples for the tests of SeaS."""

import copy

from plate_examples import plate_examples

PAPER = {
    "balance": "image",
    "canvas": "whole",
    "paste": False,
    "ref_strength": 0.0,
    "alignment": "paper",
    "mask_dilation": None,
}
QUICK = {
    **PAPER,
    "steps": 3,
    "mask_steps": 2,
    "batch_size": 2,
    "variants": 2,
    "sampling_steps": 4,
    "mask_layers": 1,
}


def seas_examples():
    """Return two normal examples, a dent and a scratch."""
    return plate_examples(2, slice(8, 32), slice(8, 24))


def with_settings(generator, **settings):
    """Return the same fitted generator with other settings."""
    other = copy.copy(generator)
    other.config = generator.config.model_copy(update=settings)
    return other
