"""Run-length encodings of masks, written for the tests: the inverse of what the library decodes."""

from itertools import pairwise

import numpy as np


def encode_runs(flat):
    """Return the alternating run lengths of a flat mask bool [N], False pixels first."""
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    lengths = [after - before for before, after in pairwise(edges)]
    return [0, *lengths] if flat.size and flat[0] else lengths


def mask_to_rle(mask):
    """Return COCO's run lengths of a mask bool [H, W], down the columns."""
    return encode_runs(mask.ravel(order="F"))


def compress_counts(counts):
    """Return run lengths in COCO's compressed notation."""
    characters = []
    for index, count in enumerate(counts):
        value, more = count - (counts[index - 2] if index > 2 else 0), True
        while more:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            characters.append(chr(48 + group + (32 if more else 0)))
    return "".join(characters)
