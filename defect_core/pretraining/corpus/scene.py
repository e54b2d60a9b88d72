"""Render scenes: a product with at most one defect, its mask and its captions.

A scene is a function of its seed. The corpus contains no photograph and nothing derived from one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from defect_core.pretraining.corpus.defects import DEFECTS, NormalImage, render_defect
from defect_core.pretraining.corpus.noise import Array
from defect_core.pretraining.corpus.objects import OBJECTS, render_object
from defect_core.pretraining.corpus.surfaces import SURFACES, render_surface

RESOLUTION = 128
NORMAL_FRACTION = 0.35
GRAY_FRACTION, SURFACE_FRACTION, GENERIC_NAME_FRACTION = 0.4, 0.5, 0.06
MAX_ATTEMPTS = 4  # a defect can turn out invisible; another one is tried then
MAX_NOISE_STD = 0.015
_PROMPTS = ("a photo of {}", "a photo of {}", "a photo of {}", "a close-up photo of {}", "an image of {}", "{}")
_PHRASES = ("{defect} on {thing}", "{defect} on {thing}", "{thing} with {defect}", "{defect} in {thing}")
_GENERIC_NAMES = ("defect", "anomaly", "damage", "fault")
_NO_ARTICLE = (
    "scratches",
    "pores",
    "pinholes",
    "debris",
    "loose strands",
    "frayed fibres",
    "dirt",
    "wear",
    "rust",
    "fuzz",
)
_NO_ARTICLE_LAST_WORDS = {"leather", "cloth"}


@dataclass(frozen=True)
class Scene:
    """A rendered image with at most one defect.

    Attributes:
        image: uint8 [S, S, 3].
        normal: the image without the defect, uint8 [S, S, 3]; equal to `image` outside the mask.
        mask: bool [S, S], the pixels that the defect changes; empty for a normal image.
        caption: caption of `image`.
        normal_caption: caption of `normal`.
        tags: kind of product and kind of defect; "" for a normal image.
    """

    image: NDArray[np.uint8]
    normal: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    caption: str
    normal_caption: str
    tags: tuple[str, str]


def render_scene(rng: np.random.Generator, size: int = RESOLUTION) -> Scene:
    """Render one scene with a side of `size` pixels; about two thirds of the scenes have a defect."""
    is_gray = rng.random() < GRAY_FRACTION
    if rng.random() < SURFACE_FRACTION:
        image, kind, name = render_surface(rng, size, is_gray)
        background, foreground = None, np.ones((size, size), bool)
    else:
        image, background, coverage, kind, name = render_object(rng, size, is_gray)
        foreground = coverage > 0.5
    if is_gray:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
        background = None if background is None else np.repeat(background.mean(-1, keepdims=True), 3, -1)
    thing = _with_article(name)
    prompt = str(rng.choice(_PROMPTS))
    normal_caption = caption = prompt.format(thing)
    defective, mask, defect_kind = image, np.zeros((size, size), bool), ""
    if rng.random() > NORMAL_FRACTION:
        canvas = NormalImage(image, background, foreground, is_gray)
        attempts = (render_defect(rng, canvas) for _ in range(MAX_ATTEMPTS))
        rendered = next((attempt for attempt in attempts if attempt is not None), None)
        if rendered is not None:
            defective, mask, defect_kind, defect = rendered
            defect = str(rng.choice(_GENERIC_NAMES)) if rng.random() < GENERIC_NAME_FRACTION else defect
            phrase = str(rng.choice(_PHRASES)).format(defect=_with_article(defect), thing=thing)
            caption = prompt.format(phrase)
    blur_sigma, noise_std = rng.choice([0, 0, 0.5, 0.8]), rng.uniform(0, MAX_NOISE_STD)
    noise = noise_std * rng.standard_normal((size, size, 1 if is_gray else 3), dtype=np.float32)
    normal = _apply_camera(image, blur_sigma, noise)
    captured = np.where(mask[..., None], _apply_camera(defective, blur_sigma, noise), normal)
    return Scene(captured, normal, mask, caption, normal_caption, (kind, defect_kind))


def crop_view(scene: Scene, rng: np.random.Generator, local: bool, resolution: int = RESOLUTION) -> Scene:
    """Return a square view of a scene, resized to the resolution of the backbone.

    Args:
        scene: the scene.
        rng: source of randomness; used for local views only.
        local: whether to crop, as the local canvas of the generators does, and to rotate and mirror the crop. The side
            of the crop is 1.5 to 4 times the extent of the defect; a normal scene is cropped anywhere.
        resolution: side of the returned images in pixels.
    """
    size = scene.mask.shape[0]
    top, left, side, turns, is_mirrored = 0, 0, size, 0, False
    if local:
        top, left, side = _local_window(scene.mask, rng)
        turns, is_mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
    window = (slice(top, top + side), slice(left, left + side))

    def resize(array: NDArray[np.uint8], method: Image.Resampling) -> NDArray[np.uint8]:
        array = np.rot90(array[window], turns)
        array = np.ascontiguousarray(array[:, ::-1] if is_mirrored else array)
        return np.asarray(Image.fromarray(array).resize((resolution, resolution), method))

    image, normal = (resize(array, Image.Resampling.BICUBIC) for array in (scene.image, scene.normal))
    coverage = resize(scene.mask.astype(np.uint8) * 255, Image.Resampling.BOX)
    mask = coverage >= 128
    if scene.mask.any() and not mask.any():
        mask = coverage > 0
    return Scene(image, normal, mask, scene.caption, scene.normal_caption, scene.tags)


def vocabulary_texts() -> list[str]:
    """Return texts that contain every word of the captions, for the training of the tokenizer."""
    names = [name for table in (SURFACES, OBJECTS) for _, group in table.values() for name in group]
    defects = [name for _, group, _ in DEFECTS.values() for name in group]
    return [*_PROMPTS[3:5], *names, *defects, *_GENERIC_NAMES, "a", "an", "on", "with", "in"]


def _local_window(mask: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int, int]:
    """Return top, left and side of a random square around the mask, or anywhere if the mask is empty."""
    size = mask.shape[0]
    rows, columns = np.nonzero(mask)
    if len(rows):
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        side = int(np.clip(extent * rng.uniform(1.5, 4), size / 4, size))
        centre = ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2)
        top, left = (int(np.clip(c - side * rng.uniform(0.35, 0.65), 0, size - side)) for c in centre)
    else:
        side = int(size * rng.uniform(0.25, 0.9))
        top, left = (int(v) for v in rng.integers(0, size - side + 1, 2))
    return top, left, side


def _with_article(name: str) -> str:
    if name in _NO_ARTICLE or name.split()[-1] in _NO_ARTICLE_LAST_WORDS:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _apply_camera(image: Array, blur_sigma: float, noise: Array) -> NDArray[np.uint8]:
    """Return an image in [0, 1] with lens blur and sensor noise, quantised to 8 bits."""
    if blur_sigma:
        image = ndimage.gaussian_filter(image, (blur_sigma, blur_sigma, 0))
    return np.clip((image + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
