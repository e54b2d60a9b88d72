"""The stage `adapt`: the files of an adapted backbone, and their content."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from striped_plates import make_plates

from defect_core.adaptation import product
from defect_core.adaptation.normal_sampler import CONFIG_FILE, DENOISER_FILE, NormalSampler, SamplerConfig
from defect_core.adaptation.sampler_choice import CANDIDATES
from defect_core.backbones.load import load_backbone
from defect_core.data.records import Record, load_image, save_png, write_records
from defect_core.generators.base import Example
from defect_core.project.paths import Project
from defect_core.stages import adapt as stage


@pytest.fixture(scope="module")
def plates() -> list[Example]:
    return make_plates()


def _run_stage(plates: list[Example], root: Path, settings: str = "") -> Path:
    """Run the stage in a new project and return its output folder."""
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(
        "products: [plate]\nsources: {plate: {path: x, layout: mvtec}}\ngenerators: [crop-paste]\n"
        "arms: [real_only, crop-paste]\n"
        f"adapt: {{steps: 2, batch_size: 2, views: 4, check_every: 2, {settings}}}\n"
    )
    raw, records = root / "data/raw/plate", []
    for example in plates:
        save_png(example.image, raw / example.name)
        records.append(Record("plate", "good", example.name, None, "train", example.name, 96, 96))
    (root / "data/split").mkdir()
    write_records(records, root / "data/split/plate.parquet")
    stage.run(Project(root), "plate")
    return root / "data/backbone/plate"


def test_stage_writes_backbone_curve_sampler_and_samples(
    plates: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "CANDIDATE_SAMPLES", 2)
    folder = _run_stage(plates, tmp_path)
    images = [load_image(path) for path in sorted(folder.glob("samples/*.png"))]
    assert len(images) == len({image.tobytes() for image in images}) == product.SAMPLES
    assert load_backbone(folder).resolution == images[0].shape[0]
    assert [point["step"] for point in json.loads((folder / "adaptation.json").read_text())] == [0, 2]
    assert not (folder / DENOISER_FILE).exists()  # normal_sampler_steps is 0
    rows = json.loads((folder / CONFIG_FILE).read_text())["candidates"]
    assert tuple(SamplerConfig(*(row[field] for field in SamplerConfig._fields)) for row in rows) == CANDIDATES
    assert len({row["distance"] for row in rows}) == len(CANDIDATES)
    sampler = NormalSampler.load(folder, load_backbone(folder), load_backbone("embedded"), plates)
    chosen = rows[CANDIDATES.index(sampler.config)]
    # The plates have sensor noise, which two training steps do not learn.
    assert sampler.sensor_noise is not None
    assert chosen["distance_with_sensor_noise"] < chosen["distance"]
    assert chosen["distance_with_sensor_noise"] == min(row["distance_with_sensor_noise"] for row in rows)
    [noisy] = sampler.add_sensor_noise(images[:1], [5])
    assert 2 < np.std(noisy.astype(float) - images[0]) < 8


def test_normal_denoiser_is_separate_from_the_denoiser_of_the_generators(
    plates: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "CANDIDATE_SAMPLES", 2)
    monkeypatch.setattr(product, "SAMPLES", 1)
    folders = [_run_stage(plates, tmp_path / str(steps), f"normal_sampler_steps: {steps}") for steps in (0, 2)]
    without, with_it = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in folders)
    assert all(torch.equal(value, with_it[name]) for name, value in without.items())
    normal = load_file(folders[1] / DENOISER_FILE)
    assert normal.keys() == with_it.keys()
    assert any(not torch.equal(value, with_it[name]) for name, value in normal.items())
    sampler = NormalSampler.load(folders[1], load_backbone(folders[1]), None, plates)
    assert all(
        torch.equal(value.half(), normal[name]) for name, value in sampler.backbone.denoiser.state_dict().items()
    )
    curve = json.loads((folders[1] / "normal_denoiser_training.json").read_text())
    assert [point["step"] for point in curve] == [0, 2]
