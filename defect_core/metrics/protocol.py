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

Names in `_lite0` use embedded ImageNet features: compare them with each other, never with published numbers.
The names of published scores stand only where the published networks are at hand.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from defect_core.errors import InputError
from defect_core.metrics.features import InceptionFeatures, Lite0Features, LpipsDistance, pairwise_distance
from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.ic_lpips import cluster_embeddings, mean_pairwise_distance
from defect_core.metrics.inception_score import inception_score
from defect_core.metrics.memorisation import memorisation

IC_LPIPS_CAP = 50
KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
SPLITS_FROM = 500  # fewer images than this leave too little in each of ten splits

_LPIPS_NAMES = ("lpips", "lpips_diversity", "ic_lpips", "ic_lpips_masked")

Sets = Mapping[str, Sequence[NDArray[Any]]]


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
        real_networks: False leaves Inception and LPIPS out even where they are at hand.

    Returns:
        `protocol` (networks with digests, sizes, counts, seed), `scores` = {"pooled": {name: value}, "defects":
        {defect: {name: value}}}, and `missing`, from each absent score (`name`, or `defect/name`) to the reason.
        Values have six significant digits; the dict is JSON-ready and free of paths and times.

    Raises:
        InputError: no generated image, a defect without real images, or masks that do not match the images.
    """
    defects = _check(real, generated, real_masks, generated_masks)
    if unseen is not None:
        _check(unseen, generated, None, None)
    real_images = {d: _resize(real[d], image_size) for d in defects}
    made_images = {d: _resize(generated[d], image_size) for d in defects}
    target_images = real_images if unseen is None else {d: _resize(unseen[d], image_size) for d in defects}
    masked: tuple[dict, dict] | None = None
    if real_masks is not None and generated_masks is not None:
        masked = tuple(  # type: ignore[assignment]
            {d: images[d] * _resize(masks[d], image_size)[..., None] for d in defects}
            for images, masks in ((real_images, real_masks), (made_images, generated_masks))
        )
    board = _Board(defects)
    protocol: dict[str, Any] = {
        "image_size": image_size,
        "seed": seed,
        "defects": {
            d: {"real": len(real_images[d]), "compared_with": len(target_images[d]), "generated": len(made_images[d])}
            for d in defects
        },
        "ic_lpips": {"cap": IC_LPIPS_CAP, "zero_policy": "drop"},
        "kernel": {"degree": 3, "subsets": KERNEL_SUBSETS, "subset_size": f"{KERNEL_SUBSET_SIZE} or the smaller set"},
        "inception_score": {"splits": f"10 from {SPLITS_FROM} images, else 1"},
        "networks": {},
    }
    lite0 = Lite0Features(device)
    protocol["networks"]["lite0"] = {"name": lite0.name, "digest": lite0.digest}
    _score_lite0(board, lite0, real_images, target_images, made_images, masked, seed)
    published: tuple[tuple[str, tuple[str, ...], Callable[[], Any]], ...] = (
        ("inception", ("fid", "kid", "is"), lambda: InceptionFeatures(device)),
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
            protocol["fid"] = "torchmetrics, pooled; per defect the same formula in factored form"
            _score_inception(board, network, target_images, made_images, seed)
        else:
            _score_lpips(board, network, real_images, made_images, masked, seed)
    scores = {"pooled": board.pooled, "defects": board.defects}
    return {"protocol": protocol, "scores": scores, "missing": board.missing}


class _Board:
    """Collects values, per defect and pooled, and the reasons for those that are missing."""

    def __init__(self, defects: Sequence[str]) -> None:
        self.pooled: dict[str, float] = {}
        self.defects: dict[str, dict[str, float]] = {d: {} for d in defects}
        self.missing: dict[str, str] = {}

    def absent(self, name: str, reason: str) -> None:
        self.missing[name] = reason

    def put(self, name: str, value: float | None, defect: str | None = None, reason: str = "not defined") -> None:
        if value is None or not np.isfinite(value):
            self.absent(f"{defect}/{name}" if defect else name, reason)
        else:
            (self.defects[defect] if defect else self.pooled)[name] = float(f"{value:.6g}")

    def average(self, name: str) -> None:
        values = [scores[name] for scores in self.defects.values() if name in scores]
        self.put(name, float(np.mean(values)) if values else None, reason="no defect has it")


def _score_lite0(
    board: _Board,
    network: Lite0Features,
    real: dict,
    target: dict,
    made: dict,
    masked: tuple[dict, dict] | None,
    seed: int,
) -> None:
    seen_real = {d: network.extract(images) for d, images in real.items()}
    seen_made = {d: network.extract(images) for d, images in made.items()}
    for d in made:
        a, b = seen_made[d], seen_real[d]
        board.put("score_lite0", inception_score(a.probabilities), d)
        _put_clusters(board, "ic_lpips_lite0", a.embedding, b.embedding, d, seed)
        board.put("diversity", mean_pairwise_distance(a.embedding), d, "fewer than two generated images")
        near = memorisation(a.pooled, b.pooled)
        reason = "needs two different real images"
        board.put("memorisation_lite0", near.ratio, d, reason)
        board.put("memorisation_copies", near.copies, d, reason)
        pixels = memorisation(_flat(made[d]), _flat(real[d]))
        board.put("memorisation_pixels", pixels.ratio, d, reason)
        if masked is not None:
            embedded = [network.embed(side[d]) for side in (masked[1], masked[0])]
            _put_clusters(board, "ic_lpips_masked_lite0", *embedded, d, seed)
    names = ["score_lite0", "ic_lpips_lite0", "diversity"]
    names += ["memorisation_lite0", "memorisation_pixels", "memorisation_copies"]
    if masked is None:
        board.absent("ic_lpips_masked_lite0", "no masks given")
    else:
        names.append("ic_lpips_masked_lite0")
    for name in names:
        board.average(name)
    seen_target = seen_real if target is real else {d: network.extract(images) for d, images in target.items()}
    pooled = {d: (seen_made[d].pooled, seen_target[d].pooled) for d in made}
    _put_distances(board, ("frechet_lite0", "kernel_lite0"), pooled, seed)
    a, b = (np.concatenate(side) for side in zip(*pooled.values(), strict=True))
    if min(len(a), len(b)) > 1:
        board.put("frechet_lite0", frechet_distance(a, b))
        board.put("kernel_lite0", _kernel(a, b, seed))
    else:
        for name in ("frechet_lite0", "kernel_lite0"):
            board.absent(name, "fewer than two real or generated images")


def _score_inception(board: _Board, network: InceptionFeatures, real: dict, made: dict, seed: int) -> None:
    seen_made = {d: network.extract(images) for d, images in made.items()}
    features = {d: (seen_made[d][0], network.extract(real[d])[0]) for d in made}
    _put_distances(board, ("fid", "kid"), features, seed)
    a, b = (np.concatenate(side) for side in zip(*features.values(), strict=True))
    if min(len(a), len(b)) > 1:
        fid, kid = library_fid_kid(b, a, seed)
        board.put("fid", fid)
        board.put("kid", kid)
    else:
        for name in ("fid", "kid"):
            board.absent(name, "fewer than two real or generated images")
    if not network.has_logits:
        board.absent("is", "the Inception weights at hand lack the last layer; torch-fidelity's own file has it")
        return
    rng = np.random.default_rng(seed)
    for d, (_, probabilities) in seen_made.items():
        board.put("is", inception_score(rng.permutation(probabilities), 10 if len(made[d]) >= SPLITS_FROM else 1), d)
    board.average("is")


def _score_lpips(
    board: _Board, network: LpipsDistance, real: dict, made: dict, masked: tuple[dict, dict] | None, seed: int
) -> None:
    names = ["lpips", "lpips_diversity", "ic_lpips"]
    for d in made:  # one defect at a time: an embedding is megabytes per image
        a, b = network.embed(made[d]), network.embed(real[d])
        board.put("lpips", float(pairwise_distance(a, b).mean()), d)
        board.put("lpips_diversity", mean_pairwise_distance(a), d, "fewer than two generated images")
        _put_clusters(board, "ic_lpips", a, b, d, seed)
        if masked is not None:
            _put_clusters(board, "ic_lpips_masked", network.embed(masked[1][d]), network.embed(masked[0][d]), d, seed)
    if masked is None:
        board.absent("ic_lpips_masked", "no masks given")
    for name in [*names, "ic_lpips_masked"] if masked is not None else names:
        board.average(name)


def library_fid_kid(real: NDArray[np.float32], generated: NDArray[np.float32], seed: int) -> tuple[float, float]:
    """FID and mean KID of features `[N,D]`, `[M,D]` as torchmetrics computes them (KID is not multiplied).

    The features stand in for the images, and the network is the identity: each image is seen once, not twice.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    identity = torch.nn.Identity()
    identity.num_features = real.shape[1]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # KID announces that it keeps features in memory
        torch.manual_seed(seed)  # KID draws its subsets from torch's global generator
        size = min(KERNEL_SUBSET_SIZE, len(real), len(generated))
        fid = FrechetInceptionDistance(feature=identity)
        kid = KernelInceptionDistance(feature=identity, subsets=KERNEL_SUBSETS, subset_size=size)
        for metric in (fid, kid):
            # in double precision, or the smallest of the 2048 eigenvalues are noise
            metric.update(torch.from_numpy(real).double(), real=True)
            metric.update(torch.from_numpy(generated).double(), real=False)
        return float(fid.compute()), float(kid.compute()[0])


def _put_distances(board: _Board, names: tuple[str, str], features: dict, seed: int) -> None:
    for d, (a, b) in features.items():
        if min(len(a), len(b)) > 1:
            board.put(names[0], frechet_distance(a, b), d)
            board.put(names[1], _kernel(a, b, seed), d)
        else:
            for name in names:
                board.absent(f"{d}/{name}", "fewer than two real or generated images")


def _put_clusters(board: _Board, name: str, made: NDArray, real: NDArray, defect: str, seed: int) -> None:
    result = cluster_embeddings(made, real, IC_LPIPS_CAP, "drop", seed)
    board.put(name, result.value, defect, result.reason)


def _kernel(a: NDArray, b: NDArray, seed: int) -> float:
    return kernel_distance(a, b, seed, KERNEL_SUBSETS, KERNEL_SUBSET_SIZE).mean


def _flat(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32)


def _resize(arrays: Sequence[NDArray[Any]], size: int) -> NDArray[Any]:
    """Images to uint8 `[N,S,S,3]`, bool masks to `[N,S,S]`."""
    resized = []
    for array in arrays:
        if array.dtype == bool:
            from defect_core.data.masks import downsample_mask

            resized.append(array if array.shape == (size, size) else downsample_mask(array, size, "area"))
        elif array.shape[:2] == (size, size):
            resized.append(array)
        else:
            resized.append(np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(resized)


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
