"""Time of IC-LPIPS of 1000 generated images and 8 references, cap 50: this package and pairwise calls of `lpips`.

The public scripts call the network on every pair: each generated image with each reference, then each pair within a
cluster. All pairs take an hour on a CPU. The time of a random sample of pairs, one per call, is therefore measured and
multiplied. The value is also computed from the features of `lpips` over all pairs. AlexNet at 64 px, with weights from
DEFECTORY_WEIGHTS or random ones.

    python -m benchmarks.ic_lpips [side]
"""

import sys
import time

import numpy as np
import torch

GENERATED, REFERENCES, CAP, SAMPLE = 1000, 8, 50, 150
BOUND_RATIO, BOUND_ERROR = 30, 1e-4


def main(side: int = 64) -> None:
    from defect_core.metrics.intra_cluster import intra_cluster_distance

    network, source = _network()
    references, generated = _images(side)
    network.embed(generated[:8])  # warm-up
    start = time.perf_counter()
    result = intra_cluster_distance(generated, references, network.embed, CAP)
    ours = time.perf_counter() - start
    pairs = GENERATED * REFERENCES + sum(min(n, CAP) * (min(n, CAP) - 1) // 2 for n in result.cluster_sizes)
    seconds, error = _pairwise(network.model, network.embed, generated, references)
    ratio = seconds * pairs / ours
    print(f"{GENERATED} generated, {REFERENCES} references, cap {CAP}, {side} px, {source}")
    print(f"clusters {result.cluster_sizes}, value {result.value:.6f}")
    print(f"this package {ours:.1f} s; pairwise {seconds * pairs:.0f} s, from {SAMPLE} of {pairs} pairs")
    print(f"ratio {ratio:.0f} (bound {BOUND_RATIO}); largest error of a pair {error:.1e} (bound {BOUND_ERROR})")
    value = _value_by_lpips(network.model, generated, references)
    difference = abs(value - (result.value or 0.0))
    print(f"value by lpips' own features over all pairs {value:.6f}, difference {difference:.1e}")


def _images(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight scenes, and noisy, shifted and recoloured copies of them."""
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 255, (REFERENCES, side // 8, side // 8, 3)).repeat(8, 1).repeat(8, 2)
    copies = []
    for index in range(GENERATED):
        image = np.roll(scenes[index % REFERENCES], rng.integers(-3, 4, 2), (0, 1))
        copies.append((image + rng.normal(0, 12, image.shape) + rng.normal(0, 10, 3)).clip(0, 255))
    return scenes.astype(np.uint8), np.stack(copies).astype(np.uint8)


def _pairwise(model, embed, generated: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """Seconds per pair of `lpips` on single pairs, and its largest difference from the distances of this package."""
    from defect_core.metrics.features import pairwise_distance

    rng = np.random.default_rng(1)
    chosen = [(rng.integers(GENERATED), rng.integers(REFERENCES)) for _ in range(SAMPLE)]
    with torch.inference_mode():
        first = [_tensor(generated[i : i + 1]) for i, _ in chosen]
        second = [_tensor(references[j : j + 1]) for _, j in chosen]
        model(first[0], second[0])
        start = time.perf_counter()
        theirs = [model(a, b).item() for a, b in zip(first, second, strict=True)]
        seconds = (time.perf_counter() - start) / SAMPLE
    rows, columns = zip(*chosen, strict=True)
    ours = pairwise_distance(embed(generated[list(rows)]), embed(references))[np.arange(SAMPLE), columns]
    return seconds, float(np.abs(ours - theirs).max())


@torch.inference_mode()
def _value_by_lpips(model, generated: np.ndarray, references: np.ndarray) -> float:
    """IC-LPIPS pair by pair from the normalised features and linear heads of lpips, on the same members."""
    import lpips

    def extract(images: np.ndarray) -> list[torch.Tensor]:
        maps = [model.net.forward(model.scaling_layer(_tensor(images[i : i + 50]))) for i in range(0, len(images), 50)]
        return [lpips.normalize_tensor(torch.cat(layer)) for layer in zip(*maps, strict=True)]

    def distance(one: list[torch.Tensor], many: list[torch.Tensor]) -> torch.Tensor:
        layers = zip(model.lins, one, many, strict=True)
        return torch.stack([lin((a - b) ** 2).mean((2, 3)).flatten() for lin, a, b in layers]).sum(0)

    centres, features = extract(references), extract(generated)
    nearest = np.array(
        [int(distance([m[i : i + 1] for m in features], centres).argmin()) for i in range(len(generated))]
    )
    rank = np.random.default_rng(0).random(len(generated))
    means = []
    for cluster in range(len(references)):
        members = np.flatnonzero(nearest == cluster)
        members = members[np.argsort(rank[members])[:CAP]]
        selected = [m[members] for m in features]
        if len(members) > 1:
            rows = [
                distance([m[i : i + 1] for m in selected], [m[i + 1 :] for m in selected])
                for i in range(len(members) - 1)
            ]
            means.append(float(torch.cat(rows).mean()))
    return float(np.mean(means))


def _network():
    from defect_core.errors import InputError
    from defect_core.metrics.features import LpipsDistance

    try:
        return LpipsDistance("alex"), "AlexNet of ImageNet"
    except InputError:
        import lpips

        torch.manual_seed(0)
        network = LpipsDistance.__new__(LpipsDistance)
        network.model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)
        network.device = "cpu"
        return network, "AlexNet with random weights"


def _tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
