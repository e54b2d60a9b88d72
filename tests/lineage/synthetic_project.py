"""Test projects: images of a product, and a project of any size with lock and metrics as if every stage had run."""

import hashlib
import json
import subprocess

import numpy as np
import yaml

from defect_core.data.records import save_png
from defect_core.graph import dvcfile
from defect_core.graph.instances import find_instance, instances, run_stage
from defect_core.graph.table import STAGES
from defect_core.project.paths import Project

SCORES = ("pixel_ap", "pixel_f1_max", "pro", "iou", "pixel_auroc", "image_auroc", "image_ap", "image_f1_max")


def write_product(folder, seed=0, normals=5):
    """Write normal images and 2 x 4 images with defects and masks, 64 px, in the layout of MVTec AD."""
    rng = np.random.default_rng(seed)
    for number in range(normals):
        save_png(rng.integers(90, 130, (64, 64, 3), dtype=np.uint8), folder / f"train/good/{number:03d}.png")
    for defect, grey in (("crack", 10), ("stain", 240)):
        for number in range(4):
            image = rng.integers(90, 130, (64, 64, 3), dtype=np.uint8)
            mask = np.zeros((64, 64), bool)
            mask[20 + number : 32, 24:40] = True
            image[mask] = grey
            save_png(image, folder / f"test/{defect}/{number:03d}.png")
            save_png(mask, folder / f"ground_truth/{defect}/{number:03d}_mask.png")


def run(project, name, **axes):
    run_stage(project, find_instance(name, project.params, **axes))


def git(folder, *arguments):
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    process = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return process.stdout.strip()


def write_files(root, products=2, generators=("crop-paste", "disentangled-inversion"), per_defect=8):
    """Write params.yaml, and a lock and metrics that agree with it."""
    names = [f"product{number:02d}" for number in range(products)]
    params = {
        "seed": 0,
        "products": names,
        "sources": {name: {"path": f"images/{name}", "layout": "mvtec"} for name in names},
        "generators": list(generators),
        "arms": ["real_only", *generators, "mix"],
        "synthesize": {"per_defect": per_defect},
        "segment": {"seeds": [0, 1, 2]},
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    write_run(Project(root))


def write_run(project, raw=None):
    """Write dvc.lock and metrics as a run does: every digest is computed from what the instance reads.

    Args:
        project: has a params.yaml.
        raw: contents of the source folders, by path.
    """
    raw = raw or {}
    entries, digests = {}, {}
    for stage in STAGES:
        for cell in instances(stage, project.params):
            deps = [
                {"path": path, "md5": digests.get(path) or _md5(path, raw.get(path), *_below(digests, path))}
                for path in cell.inputs
            ]
            deps += [
                {"path": path, "md5": _md5(project.root.joinpath(path).read_bytes())}
                for path in cell.code
                if project.root.joinpath(path).is_file()
            ]
            keys = dvcfile.present_params(stage.params, [cell], project.raw_params)
            settings = {key.format(**cell.fields): _at(project.raw_params, key.format(**cell.fields)) for key in keys}
            digest = _md5(cell.address, deps, settings)
            outs = [{"path": path, "md5": _md5(path, digest)} for path in (*cell.outputs, *cell.metrics)]
            digests |= {out["path"]: out["md5"] for out in outs}
            entries[cell.address] = {
                "cmd": stage.name, "deps": deps, "params": {"params.yaml": settings}, "outs": outs,
            }  # fmt: skip
            for path in cell.metrics:
                _write_metrics(project.path(path), stage.name, digest)
    project.path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}, sort_keys=False))


def _write_metrics(path, stage, digest):
    values = [int(digest[i : i + 3], 16) / 4096 for i in range(0, 24, 3)]
    mean = {name: round(value, 6) for name, value in zip(SCORES, values, strict=True)}
    per_seed = [{"seed": i} | {name: round(v + 0.02 * (i - 1), 6) for name, v in mean.items()} for i in range(3)]
    content = {"mean": mean, "std": dict.fromkeys(SCORES, 0.02), "per_seed": per_seed}
    if stage == "score":
        content = {"scores": {"pooled": {"frechet_lite0": 100 * values[0]}}, "acceptance": {"acceptance_rate": 1.0}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True))


def _below(digests, path):
    return sorted(md5 for name, md5 in digests.items() if name.startswith(path + "/"))


def _at(content, key):
    for part in key.split("."):
        content = content[part]
    return content


def _md5(*parts):
    return hashlib.md5(repr(parts).encode()).hexdigest()
