"""All scores of a synthetic set, with the protocol of their computation.

| score | over | better | what it compares |
|---|---|---|---|
| `frechet_lite0`, `fid` | all images together | lower | Gaussians fitted to features of generated and real |
| `kernel_lite0`, `kid` | all images together | lower | the same features under a polynomial kernel |
| `score_lite0`, `is` | mean over defects | higher | class variety of the generated images alone |
| `ic_lpips_lite0`, `ic_lpips` | mean over defects | higher | variety within clusters around each real image |
| `ic_lpips_masked_lite0`, `ic_lpips_masked` | mean over defects | higher | the same, black outside the defect |
| `diversity`, `lpips_diversity` | mean over defects | higher | mean distance of pairs of generated images |
| `lpips` | mean over defects | lower | mean distance from generated to real images |
| `memorisation_lite0`, `memorisation_pixels` | mean over defects | about 1 | distance to the nearest real image |
| `memorisation_copies` | mean over defects | lower | fraction of near copies of a real image |
| `precision_lite0`, `precision` | all images together | higher | generated images among the real ones |
| `recall_lite0`, `recall` | all images together | higher | real images among the generated ones |
| `density_lite0`, `density` | all images together | higher | number of real images near a generated one |
| `coverage_lite0`, `coverage` | all images together | higher | real images with a generated one near |
| `mask_diversity`, `mask_shape_diversity` | mean over defects | higher | 1 - IoU of pairs of masks: placed, centred |

Scores in `_lite0` use embedded ImageNet features. Compare them with each other, never with published numbers.
Scores with published names are computed only if the published networks are installed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from defect_core.errors import InputError
from defect_core.generators.base import Example
from defect_core.metrics.features import InceptionFeatures, Lite0Features, LpipsDistance
from defect_core.metrics.images import resize_images
from defect_core.metrics.intra_cluster import masked_images
from defect_core.metrics.prdc import NEIGHBOURS
from defect_core.metrics.sheet import (
    IC_LPIPS_CAP,
    KERNEL_SUBSET_SIZE,
    KERNEL_SUBSETS,
    SPLITS_FROM,
    ScoredSets,
    ScoreSheet,
    score_inception,
    score_lite0,
    score_lpips,
)
from defect_core.metrics.store import FeatureStore

_LPIPS_NAMES = ("lpips", "lpips_diversity", "ic_lpips", "ic_lpips_masked")
_INCEPTION_NAMES = ("fid", "kid", "is", "precision", "recall", "density", "coverage")

Network = TypeVar("Network")
Images: TypeAlias = Mapping[str, Sequence[NDArray[np.uint8]]]
Masks: TypeAlias = Mapping[str, Sequence[NDArray[np.bool_]]]


@dataclass(frozen=True)
class ImageSets:
    """Images by defect type, with their masks and names in the same order.

    Attributes:
        images: uint8 `[H,W,3]` of any sizes.
        masks: bool `[H,W]`, for the masked scores, or None.
        names: names of the images in the list of nearest pairs. None: positions.
    """

    images: Images
    masks: Masks | None = None
    names: Mapping[str, Sequence[str]] | None = None

    @classmethod
    def from_examples(cls, examples: Mapping[str, Sequence[Example]]) -> "ImageSets":
        """Returns the sets of examples by defect type."""
        return cls(
            {d: [example.image for example in group] for d, group in examples.items()},
            {d: [example.mask for example in group if example.mask is not None] for d, group in examples.items()},
            {d: [example.name for example in group] for d, group in examples.items()},
        )


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `score_sets`.

    Attributes:
        image_size: side in pixels to which all images are resized (bicubic, antialiased).
        seed: seed of subsets and caps.
        device: torch device of the networks.
        lpips_net: trunk of `lpips` and `ic_lpips`: "vgg" (as AnomalyDiffusion's script) or "alex".
        published_networks: whether Inception and LPIPS are used if their weights are installed.
        store: stored features of earlier calls.
    """

    image_size: int = 128
    seed: int = 0
    device: str = "cpu"
    lpips_net: str = "vgg"
    published_networks: bool = True
    store: FeatureStore = field(default_factory=FeatureStore)


def score_sets(
    real: ImageSets, generated: ImageSets, unseen: ImageSets | None = None, options: ScoreOptions | None = None
) -> dict[str, Any]:
    """Returns all scores of generated defect images against real ones.

    Args:
        real: training images. They are the references and the images that may be memorised.
        generated: generated images. Every defect type must be in `real`.
        unseen: real images that the generator has not seen, with which the distributions are compared (Fréchet,
            kernel, FID, KID, precision and recall). None is `real`.
        options: None is the default.

    Returns:
        `protocol` (networks with digests, sizes, counts, seed), `scores` = {"pooled": {name: value}, "defects":
        {defect: {name: value}}}, `missing`, from each missing score (`name`, or `defect/name`) to the reason, and
        `nearest`, {defect: {"features": pairs, "pixels": pairs}}: the generated images nearest to a training image.
        Values have six significant digits. The dict is JSON-ready, without paths and times.

    Raises:
        InputError: no generated image, a defect type without real images, or masks that do not match the images.
    """
    options = options or ScoreOptions()
    defects = _check(real, generated)
    if unseen is not None:
        _check(ImageSets(unseen.images), ImageSets(generated.images))
    sets = _resize(real, generated, unseen, defects, options.image_size)
    sheet, protocol = ScoreSheet(defects), _protocol(sets, options)
    lite0 = Lite0Features(options.device)
    protocol["networks"]["lite0"] = {"name": lite0.name, "digest": lite0.digest}
    score_lite0(sheet, lite0, sets, options.store, options.seed)
    inception = _load_published(sheet, options, _INCEPTION_NAMES, lambda: InceptionFeatures(options.device))
    if inception is not None:
        protocol["networks"]["inception"] = {"name": inception.name, "digest": inception.digest}
        protocol["fid"] = "factored form of the formula; equal to torch-fidelity's to 1e-4"
        score_inception(sheet, inception, sets, options.store, options.seed)
    lpips = _load_published(sheet, options, _LPIPS_NAMES, lambda: LpipsDistance(options.lpips_net, options.device))
    if lpips is not None:
        protocol["networks"]["lpips"] = {"name": lpips.name, "digest": lpips.digest}
        score_lpips(sheet, lpips, sets, options.store, options.seed)
    scores = {"pooled": sheet.pooled, "defects": sheet.defects}
    return {"protocol": protocol, "scores": scores, "missing": sheet.missing, "nearest": sheet.nearest}


def _resize(
    real: ImageSets, generated: ImageSets, unseen: ImageSets | None, defects: list[str], size: int
) -> ScoredSets:
    real_images = {d: resize_images(real.images[d], size) for d in defects}
    generated_images = {d: resize_images(generated.images[d], size) for d in defects}
    target = real_images if unseen is None else {d: resize_images(unseen.images[d], size) for d in defects}
    sets = ScoredSets(real_images, target, generated_images, names=(real.names, generated.names))
    if real.masks is None or generated.masks is None:
        return sets
    masks = {d: resize_images(generated.masks[d], size) for d in defects}
    return sets._replace(
        masked_real={d: masked_images(real_images[d], resize_images(real.masks[d], size)) for d in defects},
        masked_generated={d: masked_images(generated_images[d], masks[d]) for d in defects},
        generated_masks=masks,
    )


def _protocol(sets: ScoredSets, options: ScoreOptions) -> dict[str, Any]:
    return {
        "image_size": options.image_size,
        "seed": options.seed,
        "defects": {
            d: {"real": len(sets.real[d]), "compared_with": len(sets.target[d]), "generated": len(images)}
            for d, images in sets.generated.items()
        },
        "ic_lpips": {"cap": IC_LPIPS_CAP, "zero_policy": "drop"},
        "kernel": {"degree": 3, "subsets": KERNEL_SUBSETS, "subset_size": f"{KERNEL_SUBSET_SIZE} or the smaller set"},
        "precision_recall": {"k": f"{NEIGHBOURS} or one less than the smaller set"},
        "inception_score": {"splits": f"10 from {SPLITS_FROM} images, else 1"},
        "networks": {},
    }


def _load_published(
    sheet: ScoreSheet, options: ScoreOptions, names: Sequence[str], load: Callable[[], Network]
) -> Network | None:
    """The network, or None after the reason is written for each of its scores."""
    try:
        if not options.published_networks:
            raise InputError("published networks are switched off")
        return load()
    except InputError as error:
        for name in names:
            sheet.mark_missing(name, str(error))
        return None


def _check(real: ImageSets, generated: ImageSets) -> list[str]:
    """The defect types with generated images, sorted."""
    defects = [d for d in sorted(generated.images) if len(generated.images[d])]
    if not defects:
        raise InputError("score: no generated image; expected at least one")
    for d in defects:
        if not len(real.images.get(d, ())):
            raise InputError(f"score: defect {d!r} has generated but no real images; expected at least one")
    if (real.masks is None) != (generated.masks is None):
        raise InputError("score: masks given for one side only; expected both or none")
    for sets in (real, generated):
        for d in defects if sets.masks is not None else ():
            images, masks = len(sets.images[d]), len((sets.masks or {}).get(d, ()))
            if images != masks:
                raise InputError(f"score: defect {d!r} has {images} images and {masks} masks")
    return defects
