"""`python -m benchmarks.compare`: time of `defectory compare` on 15 products and 7 arms whose scores all changed."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCTS, ARMS = 15, 7


def compare_time(runs: int = 3) -> float:
    """Return the median wall time in seconds of `defectory compare HEAD~1 HEAD`, with the start of Python."""
    sys.path.insert(0, str(ROOT / "tests" / "lineage"))
    from synthetic_project import git, write_files, write_run

    from defect_core.generators.registry import generator_names
    from defect_core.project.paths import Project

    generators = generator_names()[: ARMS - 2]  # The other arms are `real_only` and `mix`.
    folder = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(ROOT / "defect_core", folder / "defect_core", ignore=shutil.ignore_patterns("__pycache__"))
        git(folder, "init", "-q")
        write_files(folder, PRODUCTS, generators)
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", "before")
        params = folder / "params.yaml"
        params.write_text(params.read_text().replace("per_defect: 8", "per_defect: 9"))
        write_run(Project(folder))
        git(folder, "commit", "-q", "-a", "-m", "after")
        times = []
        for _ in range(runs):
            start = time.monotonic()
            process = subprocess.run(
                [sys.executable, "-m", "defect_core.cli.app", "compare", "HEAD~1", "HEAD", "--json"],
                cwd=folder, capture_output=True, check=True,
            )  # fmt: skip
            times.append(time.monotonic() - start)
            assert len(json.loads(process.stdout)["scores"]) > PRODUCTS * ARMS
        return statistics.median(times)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    print(f"compare, {PRODUCTS} products x {ARMS} arms: {compare_time():.2f} s (bound 3 s)")
