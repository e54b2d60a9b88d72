"""segment: the segmenter of one arm, into `data/segment/<product>/<arm>` and `metrics/segment/`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from defect_core.data.files import write_json
from defect_core.data.records import save_png
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.metrics.bootstrap import ImageTables
from defect_core.metrics.image_results import SCORES_FILE, TABLES_FILE, save_arm_scores, save_tables
from defect_core.project.arm_data import arm_folders, load_arm_data
from defect_core.project.device import default_device
from defect_core.project.paths import Project

if TYPE_CHECKING:
    from defect_core.evaluation.segmentation.evaluate import Evaluation
    from defect_core.evaluation.segmentation.train import TrainedSegmenter

MAX_SAVED_MAPS = 24


def run(project: Project, product: str, arm: str) -> None:
    """Run the stage for one product and arm."""
    from defect_core.evaluation.segmentation.measure import collect_arm_scores, measure_segmenter, resolve_config
    from defect_core.evaluation.segmentation.model import save_segmenter
    from defect_core.evaluation.segmentation.thresholds import stored_thresholds

    params, chosen = project.params, project.params.arm(arm)
    curves: list[dict] = []
    tables: list[ImageTables] = []
    key = {"settings": params.segment.model_dump(), "arm": arm}
    with project.building(f"data/segment/{product}/{arm}", key) as work:
        data, records = load_arm_data(project, product, arm_folders(project, product, chosen))

        def save(number: int, config: SegmenterConfig, trained: "TrainedSegmenter", result: "Evaluation") -> None:
            curves.append({"seed": config.seeds[number], "points": trained.curve})
            tables.append(result.tables)
            if number == 0:
                save_segmenter(trained.model, config, work / "segmenter.safetensors")
                write_json(work / "thresholds.json", stored_thresholds(data, config, result))
                defects = sum(record.mask is not None for record in records)
                _save_maps(work, [record.image for record in records], list(result.maps), defects)

        config = resolve_config(params.segment, data.defect_types, chosen.fraction)
        measured = measure_segmenter(data, config, params.seed, f"{product} {arm}", default_device(), save)
        names, seeds = [record.image for record in records], config.seeds
        save_tables(tables, names, seeds, work / TABLES_FILE)
        save_arm_scores(collect_arm_scores(names, tables, measured, params.seed), work / SCORES_FILE)
        write_json(work / "curves.json", curves)
    write_json(project.path(f"metrics/segment/{product}/{arm}.json"), {**measured, "product": product, "arm": arm})


def _save_maps(folder: Path, names: list[str], maps: Sequence[np.ndarray], defects: int) -> None:
    """Save score maps of test images, evenly chosen over the defects, which come first, as 8-bit PNG."""
    count = min(MAX_SAVED_MAPS, defects)
    chosen = sorted({i * defects // count for i in range(count)}) if count else []
    saved = {}
    for number, index in enumerate(chosen):
        file = f"maps/{number:03d}.png"
        save_png(np.rint(maps[index] * 255).astype(np.uint8), folder / file)
        saved[file] = names[index]
    write_json(folder / "maps.json", saved)
