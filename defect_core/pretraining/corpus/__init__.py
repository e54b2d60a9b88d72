"""Pictures of things and their defects, drawn by code: what the embedded weights learn from.

Nothing here is a photograph or made from one; a picture is a function of its seed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from defect_core.pretraining.corpus.defects import DEFECTS, Plate, draw_defect
from defect_core.pretraining.corpus.objects import OBJECTS, draw_object
from defect_core.pretraining.corpus.surfaces import SURFACES, draw_surface

__all__ = ["Scene", "draw", "view", "vocabulary_texts"]

RESOLUTION = 128
GOOD_SHARE = 0.35
_PHRASES = ("a photo of {}", "a photo of {}", "a photo of {}", "a close-up photo of {}", "an image of {}", "{}")
_JOINS = ("{defect} on {thing}", "{defect} on {thing}", "{thing} with {defect}", "{defect} in {thing}")
_FAULTS = ("defect", "anomaly", "damage", "fault")
_BARE = ("scratches", "pores", "pinholes", "debris", "loose strands", "frayed fibres", "dirt", "wear", "rust", "fuzz")


@dataclass(frozen=True)
class Scene:
    """A picture with at most one kind of defect.

    Attributes:
        image: uint8 [S, S, 3].
        normal: the same without the defect; equal to `image` outside the mask.
        mask: bool [S, S], exactly where the two differ by design; empty for a good picture.
        caption, normal_caption: words for the two.
        tags: kind of thing, kind of defect ("" for none).
    """

    image: NDArray[np.uint8]
    normal: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    caption: str
    normal_caption: str
    tags: tuple[str, str]


def draw(rng: np.random.Generator, size: int = RESOLUTION) -> Scene:
    """Draw one scene of the given side; two thirds have a defect."""
    gray = rng.random() < 0.4
    if rng.random() < 0.5:
        image, kind, name = draw_surface(rng, size, gray)
        background, solid = None, np.ones((size, size), bool)
    else:
        image, background, cover, kind, name = draw_object(rng, size, gray)
        solid = cover > 0.5
    if gray:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
        background = None if background is None else np.repeat(background.mean(-1, keepdims=True), 3, -1)
    thing = _article(name)
    phrase = str(rng.choice(_PHRASES))
    normal_caption = caption = phrase.format(thing)
    damaged, mask, fault = image, np.zeros((size, size), bool), ""
    if rng.random() > GOOD_SHARE:
        plate = Plate(image, background, solid, gray)
        drawn = next((found for found in (draw_defect(rng, plate) for _ in range(4)) if found), None)
        if drawn is not None:
            damaged, mask, fault, words = drawn
            words = str(rng.choice(_FAULTS)) if rng.random() < 0.06 else words
            caption = phrase.format(str(rng.choice(_JOINS)).format(defect=_article(words), thing=thing))
    blur, grain = rng.choice([0, 0, 0.5, 0.8]), rng.uniform(0, 0.015)
    noise = grain * rng.standard_normal((size, size, 1 if gray else 3), dtype=np.float32)
    normal = _develop(image, blur, noise)
    taken = np.where(mask[..., None], _develop(damaged, blur, noise), normal)
    return Scene(taken, normal, mask, caption, normal_caption, (kind, fault))


def view(scene: Scene, rng: np.random.Generator, local: bool, resolution: int = RESOLUTION) -> Scene:
    """A square picture of a scene at the backbone's resolution.

    Args:
        local: zoom to the defect with 1.5 to 4 times its extent around it (anywhere on a good scene), as the
            generators' local canvas does, and mirror or turn the picture; else the whole scene.
    """
    size = scene.mask.shape[0]
    top, left, side, turns, mirror = 0, 0, size, 0, False
    if local:
        rows, columns = np.nonzero(scene.mask)
        if len(rows):
            extent = max(np.ptp(rows), np.ptp(columns)) + 1
            side = int(np.clip(extent * rng.uniform(1.5, 4), size / 4, size))
            middle = ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2)
            top, left = (int(np.clip(c - side * rng.uniform(0.35, 0.65), 0, size - side)) for c in middle)
        else:
            side = int(size * rng.uniform(0.25, 0.9))
            top, left = (int(v) for v in rng.integers(0, size - side + 1, 2))
        turns, mirror = int(rng.integers(4)), bool(rng.random() < 0.5)
    window = (slice(top, top + side), slice(left, left + side))

    def picture(array: NDArray, method: Image.Resampling) -> NDArray:
        array = np.rot90(array[window], turns)
        array = np.ascontiguousarray(array[:, ::-1] if mirror else array)
        return np.asarray(Image.fromarray(array).resize((resolution, resolution), method))

    smooth = Image.Resampling.BICUBIC
    image, normal = picture(scene.image, smooth), picture(scene.normal, smooth)
    mask = picture(scene.mask.astype(np.uint8) * 255, Image.Resampling.BOX) >= 128
    if scene.mask.any() and not mask.any():
        mask = picture(scene.mask.astype(np.uint8) * 255, Image.Resampling.BOX) > 0
    return Scene(image, normal, mask, scene.caption, scene.normal_caption, scene.tags)


def vocabulary_texts() -> list[str]:
    """Every word that a caption can hold, as texts for the tokenizer."""
    names = [name for table in (SURFACES, OBJECTS) for _, group in table.values() for name in group]
    faults = [word for _, group, _ in DEFECTS.values() for word in group]
    return [*_PHRASES[3:5], *names, *faults, *_FAULTS, "a", "an", "on", "with", "in"]


def _article(words: str) -> str:
    if words.split()[-1] in {"leather", "cloth"} or words in _BARE:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _develop(image: NDArray, blur: float, noise: NDArray) -> NDArray[np.uint8]:
    if blur:
        image = ndimage.gaussian_filter(image, (blur, blur, 0))
    return np.clip((image + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
