"""Time and memory of the localisation scores of 200 score maps of 512 x 512 px: exact, binned and reference.

The reference is scikit-learn for AUROC, AP and the precision-recall curve, and the loop over thresholds and regions of
the public evaluation scripts for PRO (200 thresholds). PRO of the reference runs on every `STRIDE`-th threshold and its
time is multiplied. Each measurement is a process, so that its peak memory is its own. The memory of the imports
(torch and torchmetrics) is subtracted. The maps are read one by one.

    python -m benchmarks.localisation
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES, SIDE, THRESHOLDS, STRIDE, LIMIT = 200, 512, 200, 20, 0.3
BOUND_RATIO, BOUND_MB, BOUND_ERROR = 8, 600, 1e-3
NAMES = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pro")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_maps(Path(folder))
        results = {mode: _run_process(mode, folder) for mode in ("exact", "binned", "reference")}
    reference = results["reference"]["seconds"]
    print(f"{IMAGES} score maps of {SIDE}x{SIDE}; reference {reference:.1f} s (PRO from 1 of {STRIDE} thresholds)")
    print(f"{'':10} {'seconds':>8} {'ratio':>7} {'peak MB':>9}  " + " ".join(f"{n:>12}" for n in NAMES))
    for mode, result in results.items():
        values = " ".join(f"{result['scores'].get(name) or float('nan'):12.8f}" for name in NAMES)
        print(f"{mode:10} {result['seconds']:8.2f} {reference / result['seconds']:7.1f} {result['mb']:9.0f}  {values}")
    for mode, bound in (("exact", 1e-6), ("binned", BOUND_ERROR)):
        result = results[mode]
        errors = [abs(result["scores"][n] - results["reference"]["scores"][n]) for n in NAMES[:3]]
        errors.append(abs(result["scores"]["pro"] - results["exact"]["scores"]["pro"]))
        passed = max(errors) <= bound and result["mb"] <= BOUND_MB and reference / result["seconds"] >= BOUND_RATIO
        print(f"{mode}: largest error {max(errors):.1e}; bounds of {BOUND_RATIO}x, {BOUND_MB} MB, {bound}: {passed}")


def make_maps(folder: Path) -> None:
    """Write score maps and masks: half normal images, half with one to four discs, as by a mediocre segmenter."""
    rng = np.random.default_rng(0)
    shape = (IMAGES, SIDE, SIDE)
    scores = np.lib.format.open_memmap(folder / "scores.npy", "w+", np.float32, shape)
    masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.bool_, shape)
    y, x = np.mgrid[:SIDE, :SIDE]
    for index in range(IMAGES):
        for _ in range(rng.integers(1, 5) if index % 2 else 0):
            centre, radius = rng.integers(0, SIDE, 2), rng.integers(3, 40)
            masks[index] |= np.hypot(y - centre[0], x - centre[1]) < radius
        logits = rng.normal(size=(SIDE, SIDE)) + 2.5 * masks[index] - 4
        scores[index] = 1 / (1 + np.exp(-logits))


def measure(mode: str, folder: Path) -> dict:
    """Return seconds, peak memory in MB and scores of one mode."""
    if mode == "reference":
        import sklearn.metrics  # noqa: F401 - the import is not timed
        from scipy import ndimage  # noqa: F401
    from defect_core.metrics.localisation_metrics import LocalisationScores

    imports, start = _peak(), time.perf_counter()
    extra = 0.0
    if mode == "reference":
        result, extra = score_reference(np.load(folder / "scores.npy"), np.load(folder / "masks.npy"))
    else:
        metric = LocalisationScores(thresholds=None if mode == "exact" else "binned")
        for index in range(IMAGES):
            metric.update([_read(folder / "scores.npy", index)], [_read(folder / "masks.npy", index)])
        result = {name: value.item() for name, value in metric.compute().items()}
    seconds = time.perf_counter() - start + extra
    return {"seconds": seconds, "mb": _peak() - imports, "scores": result}


def score_reference(scores: np.ndarray, masks: np.ndarray) -> tuple[dict, float]:
    """Return the scores and the seconds that the skipped thresholds of PRO would have taken."""
    from scipy import ndimage
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    flat, labels = scores.ravel(), masks.ravel()
    result = {"pixel_auroc": roc_auc_score(labels, flat), "pixel_ap": average_precision_score(labels, flat)}
    precision, recall, _ = precision_recall_curve(labels, flat)
    result["pixel_f1_max"] = float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())
    regions = [ndimage.label(mask, np.ones((3, 3))) for mask in masks]
    start = time.perf_counter()
    steps = np.linspace(flat.min(), flat.max(), THRESHOLDS)[::STRIDE]
    for threshold in steps:
        predicted = scores > threshold
        _ = predicted[~masks].mean()
        for hit, (labelled, count) in zip(predicted, regions, strict=True):
            _ = [hit[labelled == region].mean() for region in range(1, count + 1)]
    return result, (time.perf_counter() - start) * (STRIDE - 1)


def _run_process(mode: str, folder: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.localisation", mode, folder]
    root = Path(__file__).resolve().parent.parent
    completed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return json.loads(completed.stdout)


def _read(file: Path, index: int) -> np.ndarray:
    """One map of the file. A memory map would add all pages of the file to the memory of the process."""
    with open(file, "rb") as stream:
        np.lib.format.read_magic(stream)
        _, _, dtype = np.lib.format.read_array_header_1_0(stream)
        stream.seek(index * SIDE * SIDE * dtype.itemsize, 1)
        return np.fromfile(stream, dtype, SIDE * SIDE).reshape(SIDE, SIDE)


def _peak() -> float:
    """Peak memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
