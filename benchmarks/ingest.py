"""Time and memory of taking in data: many images, many small files, one huge image, a mask of many components.

Each measurement ingests a source that is made by code in a temporary folder, in a separate process. `peak` is the
memory of the largest of that process and its workers, with the imports (about 150 MB).

`cpu` is processor time of all processes per image, with the imports: on idle cores the rate is the number of cores
divided by it. Compare this number on a shared machine.

    python -m benchmarks.ingest            # a few hundred images, one minute
    python -m benchmarks.ingest --full     # 20 000 images of 1024 x 1024 px (about 8 GB), 50 000 small files
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defect_core.data.layouts.ingest import ingest_source
from defect_core.data.masks import component_widths, components, downsample_mask
from defect_core.data.parallel import available_cores, map_ordered

HUGE = 12288, 16384
COMPONENTS = 10_000
DEFECT_EVERY = 20  # one image in twenty has a defect
KINDS = ("colour.png", "grey.png", "colour.jpg")


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description="Time and memory of taking in data.")
    parser.add_argument("--full", action="store_true", help="20 000 images and 50 000 small files")
    parser.add_argument("--only", choices=["images", "small", "huge", "mask"], help="one of the measurements")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (default: that of the system)")
    arguments = parser.parse_args()
    images, small = (20_000, 50_000) if arguments.full else (400, 4_000)
    print(f"{available_cores()} cores\n{'measurement':44}{'time':>9}{'rate':>12}{'cpu':>11}{'peak':>9}  bound")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        if arguments.only in (None, "images"):
            for kind, count in (("colour.png", images // 4), *((kind, images) for kind in KINDS)):
                folder_of_kind = root / f"{kind}-{count}"
                make_source(folder_of_kind, count, 1024, kind)
                _print(f"{count} images of 1024x1024, {kind}", count, _run("ingest", folder_of_kind), "150/s, flat")
        if arguments.only in (None, "small"):
            for count in (small // 4, small):
                make_source(root / f"small-{count}", count, 64)
                found = _run("ingest", root / f"small-{count}")
                _print(f"{count} files of 64x64 in one folder", count, found, "50000 in 60 s")
        if arguments.only in (None, "huge"):
            make_huge_source(root / "huge", HUGE if arguments.full else (HUGE[0] // 4, HUGE[1] // 4))
            pixels = np.prod(HUGE) / (1 if arguments.full else 16)
            _print(
                f"4 images of {pixels / 1e6:.0f} Mpixel",
                4,
                _run("ingest", root / "huge"),
                f"{12 * pixels / 1e6:.0f} MB",
            )
        if arguments.only in (None, "mask"):
            _print(f"mask of {COMPONENTS} components, 2048x2048", 1, _run("mask", root), "2 s, 300 MB more")


def make_source(folder: Path, count: int, side: int, kind: str = KINDS[0]) -> None:
    """Write `count` images `side` x `side` in MVTec's layout; one of `DEFECT_EVERY` has a scratch and a mask.

    Args:
        folder: where to write.
        count: number of images.
        side: height and width in pixels.
        kind: one of `KINDS`.
    """
    for name in ("train/good", "test/good", "test/scratch", "ground_truth/scratch"):
        (folder / name).mkdir(parents=True)
    for _ in map_ordered(_write_one, [(folder, index, side, kind) for index in range(count)]):
        pass


def make_huge_source(folder: Path, shape: tuple[int, int]) -> None:
    """Write a huge normal image and three with a defect; their lower parts are of one colour, as in scans."""
    for name in ("train/good", "test/scratch", "ground_truth/scratch"):
        (folder / name).mkdir(parents=True)
    for index in range(4):
        image = np.full((*shape, 3), 90, np.uint8)
        image[: shape[0] // 4] = np.resize(_texture(index, 1024), (shape[0] // 4, shape[1], 3))
        if index == 0:
            cv2.imwrite(f"{folder}/train/good/0.png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            continue
        mask = np.zeros(shape, np.uint8)
        mask[500:503, 100 : 2000 + index] = 255
        image[mask > 0] = 20
        cv2.imwrite(f"{folder}/test/scratch/{index}.png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        cv2.imwrite(f"{folder}/ground_truth/scratch/{index}_mask.png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _write_one(task: tuple[Path, int, int, str]) -> None:
    folder, index, side, kind = task
    colour, suffix = kind.split(".")
    image = _texture(index, side)
    level = [cv2.IMWRITE_PNG_COMPRESSION, 1] if suffix == "png" else []
    image = image if colour == "colour" else np.ascontiguousarray(image[:, :, 0])
    if index % DEFECT_EVERY:
        part = "test" if index % 5 == 0 else "train"
        cv2.imwrite(f"{folder}/{part}/good/{index:06d}.{suffix}", image, level)
        return
    mask = np.zeros((side, side), np.uint8)
    cv2.line(mask, (side // 8, side // 4), (side // 2, side // 2), 255, max(1, side // 128))
    image[mask > 0] //= 2
    cv2.imwrite(f"{folder}/test/scratch/{index:06d}.{suffix}", image, level)
    cv2.imwrite(f"{folder}/ground_truth/scratch/{index:06d}_mask.png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _texture(seed: int, side: int) -> NDArray[np.uint8]:
    """Return a smooth surface with fine sensor noise, uint8 [side, side, 3], another one for each seed."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(60, 190, (8, 8, 3), np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
    return smooth + rng.integers(0, 4, (side, side, 1), np.uint8)


def _measure(mode: str, folder: Path) -> dict[str, float]:
    if mode == "ingest":
        start = time.perf_counter()
        ingest_source(folder, "bench", folder.with_name(f"{folder.name}-out"), "mvtec")
        return {"seconds": time.perf_counter() - start}
    mask, side = np.zeros((2048, 2048), bool), int(COMPONENTS**0.5)
    for number in range(COMPONENTS):
        top, left = number // side * 20 + 2, number % side * 20 + 2
        mask[top : top + 1 + number % 8, left : left + 1 + number % 5] = True
    start = time.perf_counter()
    downsample_mask(mask, 256, "area")
    component_widths(mask)
    components(mask)
    return {"seconds": time.perf_counter() - start}


def _look(session: int, cpu: dict[str, float]) -> float:
    """Return the peak memory in MB of the largest process of a session, and note the processor seconds of each."""
    largest = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parts = stat.read_text().rpartition(")")[2].split()
            if int(parts[3]) == session:
                cpu[stat.parent.name] = (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
                largest = max(largest, int(stat.with_name("status").read_text().split("VmHWM:")[1].split()[0]) / 1e3)
        except (OSError, IndexError):
            continue  # the process has ended
    return largest


def _run(mode: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-c", f"import benchmarks.ingest as b; b.print_measurement({mode!r}, {str(folder)!r})"]
    root = Path(__file__).resolve().parent.parent
    peak, cpu = 0.0, dict[str, float]()
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None:
            peak = max(peak, _look(process.pid, cpu))
            time.sleep(0.05)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{mode} {folder.name}: failed")
    return {**json.loads(output.splitlines()[-1]), "peak": peak, "cpu": sum(cpu.values())}


def print_measurement(mode: str, folder: str) -> None:
    """Print one measurement as JSON; called in a separate process."""
    print(json.dumps(_measure(mode, Path(folder))))


def _print(name: str, count: int, found: dict[str, float], bound: str) -> None:
    rate = f"{count / found['seconds']:.0f}/s"
    cpu = f"{1e3 * found['cpu'] / count:.1f} ms"
    print(f"{name:44}{found['seconds']:>7.1f} s{rate:>12}{cpu:>11}{found['peak']:>6.0f} MB  {bound}", flush=True)


if __name__ == "__main__":
    from benchmarks.ingest import main as run_main  # functions of `__main__` are not known to worker processes

    run_main()
