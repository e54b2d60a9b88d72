"""Time to score a synthetic set for the first time, again unchanged, and with a few new images, without imports.

Two defect types, each with 64 generated and 6 real images at 128 px and masks. Inception and LPIPS (AlexNet) are used
if their weights are in DEFECTORY_WEIGHTS.

    python -m benchmarks.rescore
"""

import tempfile
import time
from pathlib import Path

import numpy as np

GENERATED, REAL, SIDE, NEW = 64, 6, 128, 4
BOUND_SECONDS = 3


def main() -> None:
    from defect_core.metrics.protocol import ImageSets, ScoreOptions, score_sets
    from defect_core.metrics.store import FeatureStore

    rng = np.random.default_rng(0)
    real, initial = ({d: _images(rng, n) for d in ("dent", "scratch")} for n in (REAL, GENERATED))
    more = {**initial, "dent": [*initial["dent"], *_images(rng, NEW)]}
    with tempfile.TemporaryDirectory() as folder:

        def score(generated: dict) -> tuple[float, int, dict]:
            store = FeatureStore(Path(folder))
            sets = [
                ImageSets(side, {d: [_mask(i) for i in images] for d, images in side.items()})
                for side in (real, generated)
            ]
            start = time.perf_counter()
            result = score_sets(*sets, options=ScoreOptions(image_size=SIDE, lpips_net="alex", store=store))
            return time.perf_counter() - start, store.computed, result["scores"]

        score({d: images[:2] for d, images in _other(rng).items()})  # imports and first calls
        first, again, grown = score(initial), score(initial), score(more)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6
    for name, (seconds, processed, _) in (("first", first), (f"{NEW} new images", grown), ("unchanged", again)):
        print(f"{name}: {seconds:.2f} s, {processed} images processed")
    print(f"bound of unchanged {BOUND_SECONDS} s; same scores: {first[2] == again[2]}")
    print(f"store {size:.0f} MB")


def _other(rng: np.random.Generator) -> dict:
    return {d: _images(rng, 2) for d in ("dent", "scratch")}


def _images(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    coarse = rng.integers(0, 255, (count, SIDE // 8, SIDE // 8, 3), np.uint8)
    return list(coarse.repeat(8, 1).repeat(8, 2))


def _mask(image: np.ndarray) -> np.ndarray:
    return image[..., 0] > 200


if __name__ == "__main__":
    main()
