"""`python -m benchmarks.compare`: the command on a made-up grid of 15 products and 7 arms, all scores moved."""

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
    """Median wall time of `defectory compare HEAD`, from the start of Python to its end."""
    sys.path.insert(0, str(ROOT / "tests" / "lineage"))
    from made_up_project import git, pretend, write_files

    from defect_core.generators import registry
    from defect_core.project.paths import Project

    # as many generators as arms without `real_only` and `mix`; made-up names stand for methods that are not there
    generators = list(registry.generator_names()[: ARMS - 2])
    generators += [f"crop-paste-{number}" for number in range(ARMS - 2 - len(generators))]
    registry._BUILT_IN.update({name: registry._BUILT_IN["crop-paste"] for name in generators if "crop" in name})
    folder = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(ROOT / "defect_core", folder / "defect_core", ignore=shutil.ignore_patterns("__pycache__"))
        git(folder, "init", "-q")
        write_files(folder, PRODUCTS, generators)
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", "before")
        params = folder / "params.yaml"
        params.write_text(params.read_text().replace("per_defect: 8", "per_defect: 9"))
        pretend(Project(folder))
        git(folder, "commit", "-q", "-a", "-m", "after")
        times = []
        for _ in range(runs):
            start = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "defect_core.cli.app", "compare", "HEAD~1", "HEAD", "--json"],
                cwd=folder, capture_output=True, check=True,
            )  # fmt: skip
            times.append(time.monotonic() - start)
            assert len(json.loads(done.stdout)["scores"]) > PRODUCTS * ARMS
        return statistics.median(times)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    print(f"compare, {PRODUCTS} products x {ARMS} arms: {compare_time():.2f} s (bound 3 s)")
