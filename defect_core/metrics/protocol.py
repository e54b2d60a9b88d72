"""All scores of a synthetic set, with the protocol that they were computed by.

| score | over | better | what it compares |
|---|---|---|---|
| `frechet_lite0`, `fid` | all images together | lower | Gaussians fitted to features of generated and real |
| `kernel_lite0`, `kid` | all images together | lower | the same features under a polynomial kernel |
| `score_lite0`, `is` | mean over defects | higher | class variety of the generated images alone |
| `ic_lpips_lite0`, `ic_lpips` | mean over defects | higher | variety within clusters around each real image |
| `ic_lpips_masked_lite0`, `ic_lpips_masked` | mean over defects | higher | the same with all but the defect black |
| `diversity`, `lpips_diversity` | mean over defects | higher | mean distance of pairs of generated images |
| `lpips` | mean over defects | lower | mean distance from generated to real images |
| `memorisation_lite0`, `memorisation_pixels` | mean over defects | about 1 | nearest real image, see `memorisation` |
| `memorisation_copies` | mean over defects | lower | fraction of generated images that nearly repeat a real one |
| `precision_lite0`, `precision` | all images together | higher | generated images among the real ones |
| `recall_lite0`, `recall` | all images together | higher | real images among the generated ones |
| `density_lite0`, `density` | all images together | higher | precision that counts how many real images are near |
| `coverage_lite0`, `coverage` | all images together | higher | real images with a generated one near |
| `mask_diversity`, `mask_shape_diversity` | mean over defects | higher | 1 - IoU of pairs of masks: placed, centred |

Names in `_lite0` use embedded ImageNet features: compare them with each other, never with published numbers.
The names of published scores stand only where the published networks are at hand.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from defect_core.errors import InputError
from defect_core.metrics.features import InceptionFeatures, Lite0Features, LpipsDistance
from defect_core.metrics.ic_lpips import masked_images
from defect_core.metrics.images import resize_images
from defect_core.metrics.prdc import NEIGHBOURS
from defect_core.metrics.sheet import (
    IC_LPIPS_CAP,
    KERNEL_SUBSET_SIZE,
    KERNEL_SUBSETS,
    SPLITS_FROM,
    Board,
    Sides,
    score_inception,
    score_lite0,
    score_lpips,
)
from defect_core.metrics.store import FeatureStore

__all__ = ["score_sets"]

_LPIPS_NAMES = ("lpips", "lpips_diversity", "ic_lpips", "ic_lpips_masked")
_INCEPTION_NAMES = ("fid", "kid", "is", "precision", "recall", "density", "coverage")

Sets = Mapping[str, Sequence[NDArray[Any]]]
Names = Mapping[str, Sequence[str]]


def score_sets(
    real: Sets,
    generated: Sets,
    real_masks: Sets | None = None,
    generated_masks: Sets | None = None,
    image_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
    lpips_net: str = "vgg",
    real_networks: bool = True,
    unseen: Sets | None = None,
    names: tuple[Names | None, Names | None] = (None, None),
    store: FeatureStore | None = None,
) -> dict[str, Any]:
    """Score generated defect images against the real training images.

    Args:
        real: defect -> its real training images, uint8 `[H,W,3]`; they are references and what may be memorised.
        generated: defect -> generated images, uint8 `[H,W,3]`; every defect must be in `real`.
        real_masks, generated_masks: bool `[H,W]` in the same order, for the masked scores; both or none.
        image_size: all images are brought to this side in pixels (bicubic, antialiased).
        seed: decides subsets and caps.
        device: torch device of the networks.
        lpips_net: trunk of `lpips` and `ic_lpips`: "vgg" (as AnomalyDiffusion's script) or "alex".
        unseen: defect -> real images that the generator has not seen: what the distances between distributions
            (Fréchet, kernel, FID, KID) compare with; None compares with `real`.
        names: what to call the images of `real` and of `generated` where pairs are listed; None: their positions.
        store: where features are kept between calls; None keeps none.
        real_networks: False leaves Inception and LPIPS out even where they are at hand.

    Returns:
        `protocol` (networks with digests, sizes, counts, seed), `scores` = {"pooled": {name: value}, "defects":
        {defect: {name: value}}}, `missing`, from each absent score (`name`, or `defect/name`) to the reason, and
        `nearest`, {defect: {"features": pairs, "pixels": pairs}}: the generated images nearest to a training image.
        Values have six significant digits; the dict is JSON-ready and free of paths and times.

    Raises:
        InputError: no generated image, a defect without real images, or masks that do not match the images.
    """
    defects = _check(real, generated, real_masks, generated_masks)
    if unseen is not None:
        _check(unseen, generated, None, None)
    store = store or FeatureStore()
    real_images = {d: resize_images(real[d], image_size) for d in defects}
    made_images = {d: resize_images(generated[d], image_size) for d in defects}
    target_images = real_images if unseen is None else {d: resize_images(unseen[d], image_size) for d in defects}
    masked_real = masked_made = made_masks = None
    if real_masks is not None and generated_masks is not None:
        made_masks = {d: resize_images(generated_masks[d], image_size) for d in defects}
        masked_made = {d: masked_images(made_images[d], made_masks[d]) for d in defects}
        masked_real = {d: masked_images(real_images[d], resize_images(real_masks[d], image_size)) for d in defects}
    sides = Sides(real_images, target_images, made_images, masked_real, masked_made, made_masks, names)
    board = Board(defects)
    protocol: dict[str, Any] = {
        "image_size": image_size,
        "seed": seed,
        "defects": {
            d: {"real": len(real_images[d]), "compared_with": len(target_images[d]), "generated": len(made_images[d])}
            for d in defects
        },
        "ic_lpips": {"cap": IC_LPIPS_CAP, "zero_policy": "drop"},
        "kernel": {"degree": 3, "subsets": KERNEL_SUBSETS, "subset_size": f"{KERNEL_SUBSET_SIZE} or the smaller set"},
        "precision_recall": {"k": f"{NEIGHBOURS} or one less than the smaller set"},
        "inception_score": {"splits": f"10 from {SPLITS_FROM} images, else 1"},
        "networks": {},
    }
    lite0 = Lite0Features(device)
    protocol["networks"]["lite0"] = {"name": lite0.name, "digest": lite0.digest}
    score_lite0(board, lite0, sides, store, seed)
    published: tuple[tuple[str, tuple[str, ...], Callable[[], Any]], ...] = (
        ("inception", _INCEPTION_NAMES, lambda: InceptionFeatures(device)),
        ("lpips", _LPIPS_NAMES, lambda: LpipsDistance(lpips_net, device)),
    )
    for key, names, load in published:
        try:
            if not real_networks:
                raise InputError("left out: real_networks is off")
            network = load()
        except InputError as error:
            for name in names:
                board.absent(name, str(error))
            continue
        protocol["networks"][key] = {"name": network.name, "digest": network.digest}
        if key == "inception":
            protocol["fid"] = "factored form of the formula; equal to torch-fidelity's to 1e-4"
            score_inception(board, network, sides, store, seed)
        else:
            score_lpips(board, network, sides, store, seed)
    scores = {"pooled": board.pooled, "defects": board.defects}
    return {"protocol": protocol, "scores": scores, "missing": board.missing, "nearest": board.pairs}


def _check(real: Sets, generated: Sets, real_masks: Sets | None, generated_masks: Sets | None) -> list[str]:
    defects = [d for d in sorted(generated) if len(generated[d])]
    if not defects:
        raise InputError("score: no generated image; expected at least one")
    for d in defects:
        if not len(real.get(d, ())):
            raise InputError(f"score: defect {d!r} has generated but no real images; expected at least one")
    if (real_masks is None) != (generated_masks is None):
        raise InputError("score: masks given for one side only; expected both or none")
    for images, masks in ((real, real_masks), (generated, generated_masks)):
        for d in defects if masks is not None else ():
            if len(masks.get(d, ())) != len(images[d]):
                raise InputError(f"score: defect {d!r} has {len(images[d])} images and {len(masks.get(d, ()))} masks")
    return defects
