"""`make bench`: times of the project on this machine, each beside its bound."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCHES = 16, 32  # Pairs that are sampled together: the number in the presets, and one that keeps two cores busy.


def main() -> None:
    """Print all times."""
    print(f"{'measurement':58} {'measured':>12} {'bound':>10}")
    for name, measure, bound in MEASUREMENTS:
        value = measure()
        shown = "run make demo" if value is None else f"{value:.2f} s"
        print(f"{name:58} {shown:>12} {bound:>10}", flush=True)


def help_time() -> float:
    """Return the time of `defectory --help`."""
    return _command(["-c", "from defect_core.cli.app import app; app(['--help'], standalone_mode=False)"])


def definitions_time() -> float:
    """Return the time of importing the Dagster definitions, without torch."""
    return _command(["-c", "import pipelines.definitions, sys; assert 'torch' not in sys.modules"])


def second_repro_time() -> float | None:
    """Return the time of a `dvc repro` of this repository with nothing to do; None if the demo has not run."""
    if not (ROOT / "report/index.html").is_file():
        return None
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=ROOT, env=_environment(), capture_output=True, text=True, check=True
    )
    return time.monotonic() - start if "Running stage" not in process.stdout else None


def sampling_time(batch: int) -> float:
    """Return the seconds per image of disentangled inversion in a batch of this size.

    It takes 25 + 25 steps on the embedded backbone.
    """
    import numpy as np

    from defect_core.backbones.load import load_backbone
    from defect_core.generators.base import Example, SampleRequest
    from defect_core.generators.registry import generator_class, generator_config

    name = "disentangled-inversion"
    rng = np.random.default_rng(0)
    image = rng.integers(80, 160, (128, 128, 3), np.uint8)
    mask = np.zeros((128, 128), bool)
    mask[40:70, 50:90] = True
    config = generator_config(name, {"sampling_steps": 25})
    generator = generator_class(name)(load_backbone("embedded"), config, "plate", ("dent",))
    source = Example("plate", "dent", image, mask, "dent/0.png")
    requests = [SampleRequest(str(i), "plate", "dent", i, image, mask, None, source, image) for i in range(batch)]
    list(generator.sample(requests[:2]))
    start = time.monotonic()
    list(generator.sample(requests))
    return (time.monotonic() - start) / batch


def segmenter_step_time() -> float:
    """Return the seconds per optimiser step of the segmenter, 8 images of 128 px."""
    import numpy as np

    from defect_core.evaluation.segmentation.config import SegmenterConfig
    from defect_core.evaluation.segmentation.data import Sample
    from defect_core.evaluation.segmentation.train import train_segmenter

    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(0, 255, (128, 128, 3), np.uint8), rng.random((128, 128)) > 0.9) for _ in range(8)]
    normal = [Sample(sample.image, np.zeros((128, 128), bool)) for sample in samples]
    train_segmenter(samples, normal, [], SegmenterConfig(steps=2), seed=0)
    start = time.monotonic()
    train_segmenter(samples, normal, [], SegmenterConfig(steps=20), seed=0)
    return (time.monotonic() - start) / 20


def _command(arguments: list[str], runs: int = 3) -> float:
    """Return the median wall time in seconds of a whole Python process."""
    times = []
    for _ in range(runs):
        start = time.monotonic()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=_environment(), capture_output=True, check=True)
        times.append(time.monotonic() - start)
    return statistics.median(times)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "DAGSTER_DISABLE_TELEMETRY": "1"}


def comparison_time() -> float:
    """Return the time of `defectory compare` on 15 products x 7 arms (`python -m benchmarks.compare`)."""
    from benchmarks.compare import compare_time

    return compare_time()


def grid_time(name: str) -> Callable[[], float]:
    """Return a function that returns one of the times of `python -m benchmarks.grid`."""

    def measure() -> float:
        from benchmarks.grid import measure_all

        return measure_all()[name]

    return measure


MEASUREMENTS: list[tuple[str, Callable[[], float | None], str]] = [
    ("defectory --help", help_time, "1 s"),
    ("import pipelines.definitions, without torch", definitions_time, "4 s"),
    ("second dvc repro of the demo, nothing run", second_repro_time, "10 s"),
    *((f"disentangled-inversion, 25 + 25 steps, one of {n}", partial(sampling_time, n), "0.35 s") for n in BATCHES),
    ("defectory compare, 15 products x 7 arms", comparison_time, "3 s"),
    ("dvc repro of that grid, nothing stale", grid_time("dvc repro"), "25 s"),
    ("decision of the nightly run on that grid", grid_time("nightly decision"), "15 s"),
    ("make dev on that grid until the UI knows its assets", grid_time("UI start"), "20 s"),
    ("overhead of DVC and Dagster per stage on that grid", grid_time("overhead of a stage"), "4 s"),
    ("one step of the segmenter, 8 images of 128 px", segmenter_step_time, "-"),
]

if __name__ == "__main__":
    main()
