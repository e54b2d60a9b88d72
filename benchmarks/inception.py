"""Time share of feature extraction in FID, KID, IS and precision of 2000 images (half of them real, two defects).

The network processes each image once. All images take more than ten minutes on a CPU. It therefore processes `SAMPLE`
images of each set, and the time is multiplied. The scores are computed on rows of the full number and width. Weights
without the last layer get a random one, which changes no time. Times are processor times, so that other load on the
machine does not matter. Weights are from DEFECTORY_WEIGHTS.

    python -m benchmarks.inception [images per set]
"""

import sys
import time

import numpy as np
import torch

IMAGES, SIDE, SAMPLE, BOUND = 2000, 128, 12, 0.9


def main(sample: int = SAMPLE) -> None:
    from defect_core.metrics.features import InceptionFeatures
    from defect_core.metrics.sheet import ScoredSets, ScoreSheet, score_inception
    from defect_core.metrics.store import FeatureStore

    class Sampled(InceptionFeatures):
        """Processes the first images of a set. The others get similar rows and the same time."""

        seconds = processed = extra = 0.0

        def columns(self, images):
            start = time.process_time()
            rows = super().columns(images[:sample])
            elapsed = time.process_time() - start
            self.processed += len(images)
            self.seconds += elapsed * len(images) / min(sample, len(images))
            self.extra += elapsed
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
    real, generated = ({d: _images(rng, IMAGES // 4) for d in ("dent", "scratch")} for _ in range(2))
    network.extract(generated["dent"][:2])  # creates the network
    sheet = ScoreSheet(sorted(generated))
    start = time.process_time()
    score_inception(sheet, network, ScoredSets(real, real, generated), FeatureStore(), 0)
    rest = time.process_time() - start - network.extra
    fraction = network.seconds / (network.seconds + rest)
    print(f"{IMAGES} images, {network.processed:.0f} processed by the network; {', '.join(sorted(sheet.pooled))}")
    print(f"features {network.seconds:.0f} s of the processor (from {4 * sample} images), all scores {rest:.1f} s")
    print(f"features take {100 * fraction:.1f} % (bound {100 * BOUND:.0f} %)")


def _images(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 255, (count, SIDE // 8, SIDE // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
