"""Calls of `score_sets` with plain dicts by defect type."""

from defect_core.metrics.protocol import ImageSets, ScoreOptions, score_sets


def score(real, generated, real_masks=None, generated_masks=None, unseen=None, names=(None, None), **options):
    """Returns the score sheet. Published networks are off unless `published_networks` is given."""
    return score_sets(
        ImageSets(real, real_masks, names[0]),
        ImageSets(generated, generated_masks, names[1]),
        None if unseen is None else ImageSets(unseen),
        ScoreOptions(**{"published_networks": False, **options}),
    )
