"""FID, KID, IS and precision of 2000 images (1000 real, 1000 generated, two defects): where does the time go?

The network sees each image once, whatever is computed from its features. A CPU needs ten minutes and more for all of
them, so it is shown `SAMPLE` images of each set, and that time is multiplied; the scores are computed whole, on rows
as many and as wide as the real ones. Where the weights at hand lack the last layer, a random one stands in for it,
which changes no time. Times are of the processor, so that a busy machine does not matter. Weights from
DEFECTORY_WEIGHTS.

    python -m benchmarks.inception [images shown per set]
"""

import sys
import time

import numpy as np
import torch

IMAGES, SIDE, SAMPLE, BOUND = 2000, 128, 12, 0.9


def main(sample: int = SAMPLE) -> None:
    from defect_core.metrics.features import InceptionFeatures
    from defect_core.metrics.sheet import Board, Sides, score_inception
    from defect_core.metrics.store import FeatureStore

    class Sampled(InceptionFeatures):
        """Looks at the first images of a set; the rest get rows like theirs, and are counted at the same price."""

        seconds = shown = extra = 0.0

        def columns(self, images):
            start = time.process_time()
            rows = super().columns(images[:sample])
            took = time.process_time() - start
            self.shown += len(images)
            self.seconds += took * len(images) / min(sample, len(images))
            self.extra += took
            rng = np.random.default_rng(len(images))
            chosen = rng.integers(len(rows["pool3"]), size=len(images))
            noise = rng.normal(1, 0.2, (len(images), 2048)).astype(np.float32)
            return {"pool3": rows["pool3"][chosen] * noise, "probabilities": rows["probabilities"][chosen]}

    network = Sampled()
    if not network.has_logits:
        last = torch.randn(1008, 2048, generator=torch.Generator().manual_seed(0)) * 0.02
        network._state |= {"fc.weight": last, "fc.bias": torch.zeros(1008)}
        network.has_logits = True
    rng = np.random.default_rng(0)
    real, made = ({d: _images(rng, IMAGES // 4) for d in ("dent", "scratch")} for _ in range(2))
    network.extract(made["dent"][:2])  # builds it
    board = Board(sorted(made))
    start = time.process_time()
    score_inception(board, network, Sides(real, real, made, None, None, None, (None, None)), FeatureStore(), 0)
    rest = time.process_time() - start - network.extra
    share = network.seconds / (network.seconds + rest)
    print(f"{IMAGES} images, {network.shown:.0f} shown to the network; {', '.join(sorted(board.pooled))}")
    print(f"features {network.seconds:.0f} s of the processor (from {4 * sample} images), all scores {rest:.1f} s")
    print(f"features take {100 * share:.1f} % (bound {100 * BOUND:.0f} %)")


def _images(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 255, (count, SIDE // 8, SIDE // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
