"""PatchCore and DRAEM of anomalib: they learn from good images, repeat themselves, and say what is missing."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import save_png
from defect_core.errors import InputError
from defect_core.evaluation.detection import anomalib_models
from defect_core.evaluation.detection.anomalib_models import _weights_file, fit_detector
from defect_core.evaluation.segmentation.config import DetectorConfig
from defect_core.graph.instances import find_instance, instances
from defect_core.project.params import Params
from defect_core.project.paths import Project

SIDE = 64
INSTALLED = importlib.util.find_spec("anomalib") is not None
needs_anomalib = pytest.mark.skipif(not INSTALLED, reason="needs the extra defectory[anomalib]")
slow = pytest.mark.slow  # importing anomalib alone takes ten seconds


def _good(seed, count):
    rng = np.random.default_rng(seed)
    stripes = 120 + 40 * np.sin(np.arange(SIDE) / 3)[None, :, None] * np.ones((SIDE, 1, 3))
    return np.stack([(stripes + rng.normal(0, 3, stripes.shape)).clip(0, 255).astype(np.uint8) for _ in range(count)])


def _broken(seed):
    image = _good(seed, 1)
    image[0, 20:36, 24:44] = (230, 30, 30)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:36, 24:44] = True
    return image, mask


@slow
@needs_anomalib
@pytest.mark.parametrize("backbone", [("tf_efficientnet_lite0", "embedded"), ("resnet18", "none")])
def test_patchcore_finds_what_no_good_image_has_and_repeats_itself(backbone):
    config = DetectorConfig(backbone=backbone[0], weights=backbone[1], layers=(1, 2), coreset=0.25)
    before = torch.get_rng_state()
    maps = []
    image, mask = _broken(9)
    for _ in range(2):
        maps.append(fit_detector(_good(0, 6), config, seed=1).predict(np.concatenate([image, _good(8, 2)])))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(*maps)
    found = maps[0]
    assert found.shape == (3, SIDE, SIDE) and found.dtype == np.float32
    assert found[0][mask].mean() > 2 * found[1:].max() or found[0][mask].mean() > 3 * found[1:].mean()


@slow
@needs_anomalib
def test_draem_trains_and_gives_probabilities(capsys):
    config = DetectorConfig(model="draem", steps=2, batch_size=2)
    one, other = (fit_detector(_good(0, 3), config, seed=s).predict(_good(5, 2)) for s in (1, 2))
    assert one.shape == (2, SIDE, SIDE) and 0 <= one.min() <= one.max() <= 1 and (one != other).any()


@slow
@needs_anomalib
def test_weights_come_from_a_local_folder_or_are_named(tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("resnet18", pretrained=False)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "resnet18.safetensors")
    monkeypatch.setenv("DEFECTORY_WEIGHTS", str(tmp_path))
    config = DetectorConfig(backbone="resnet18", weights="resnet18.safetensors", layers=(1,))
    fitted = fit_detector(_good(0, 2), config, seed=0)
    inside = dict(fitted.model.feature_extractor.feature_extractor.named_parameters())
    torch.testing.assert_close(inside["layer1.0.conv1.weight"].detach(), network.layer1[0].conv1.weight.detach())
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    for wrong, message in (
        ({"weights": "other.safetensors"}, "lacks conv1.weight"),
        ({"weights": "embedded"}, "embedded is for tf_efficientnet_lite0"),
        ({"weights": "none", "backbone": "resnet99"}, "backbone 'resnet99'.*expected a network of timm"),
        ({"weights": "none", "layers": (9,)}, r"layers \[9\].*expected a network of timm"),
    ):
        with pytest.raises(InputError, match=message):
            fit_detector(_good(0, 2), DetectorConfig(**{"backbone": "resnet18", "layers": (1,), **wrong}), seed=0)


def test_a_missing_file_package_or_image_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFECTORY_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="gone.safetensors is neither in the project nor in DEFECTORY_WEIGHTS"):
        _weights_file("gone.safetensors", tmp_path)
    (tmp_path / "there.safetensors").write_bytes(b"")
    assert _weights_file("there.safetensors", None) == tmp_path / "there.safetensors"
    with pytest.raises(InputError, match="no good image"):
        fit_detector(_good(0, 1)[:0], DetectorConfig(), seed=0)
    monkeypatch.setitem(__import__("sys").modules, "anomalib.models.image.draem", None)
    monkeypatch.setitem(__import__("sys").modules, "anomalib", None)
    with pytest.raises(InputError, match=r"pip install 'defectory\[anomalib\]'"):
        fit_detector(_good(0, 1), DetectorConfig(), seed=0)
    assert anomalib_models.LITE0 in repr(DetectorConfig())


def test_the_stage_reads_generated_good_images_only_where_there_are_any():
    base = {"products": ("a",), "sources": {"a": {"layout": "demo"}}, "generators": ("crop-paste", "seas")}
    plain, both = Params(**base, detect={}), Params(**base, detect={}, normals={})
    assert find_instance("detect", plain, product="a").inputs == ["data/raw/a", "data/split/a.parquet"]
    assert find_instance("detect", both, product="a").inputs[2:] == ["data/normals/a"]
    assert not list(instances(find_instance("detect", plain, product="a").stage, Params(**base)))


@slow
@needs_anomalib
def test_patchcore_on_the_demo_weave_with_and_without_generated_good_images(tmp_path):
    """A real run: the demo's images, ImageNet features, the segmenter's scores."""
    from defect_core.stages import detect, ingest, split

    (tmp_path / "params.yaml").write_text(
        "products: [weave]\nsources: {weave: {layout: demo}}\ngenerators: [seas]\narms: [real_only]\n"
        "split: {policy: first_third, max_train: 2}\nnormals: {}\n"
        "detect: {models: [patchcore], image_size: 96, coreset: 0.02}\n"
    )
    project = Project(tmp_path)
    ingest.run(project, "weave")
    split.run(project, "weave")
    folder = tmp_path / "data/normals/weave/seas"
    row = dict.fromkeys(ManifestRow.__dataclass_fields__)
    row |= {"sample_id": "g", "product": "weave", "defect": "good", "generator": "seas", "seed": 1, "mask_area": 0}
    save_png(np.full((128, 128, 3), 128, np.uint8), folder / "images/g.png")  # grey: useless, and it shows in nothing
    write_manifest([ManifestRow(**row | {"image": "images/g.png", "accepted": True})], folder / "manifest.parquet")
    detect.run(project, "weave")
    found = json.loads((tmp_path / "metrics/detect/weave.json").read_text())
    plain, more = found["rows"]
    assert (plain["model"], plain["normals"], more["normals"]) == ("patchcore", "real", "seas")
    assert more["protocol"]["generated_good"] == 1 and plain["protocol"]["generated_good"] == 0
    assert plain["mean"]["iou"] is None and "threshold" in plain["reasons"]["iou"]
    assert plain["mean"]["image_auroc"] > 0.7 and plain["mean"]["pixel_auroc"] > 0.8
    assert abs(plain["mean"]["pixel_auroc"] - more["mean"]["pixel_auroc"]) < 0.05
