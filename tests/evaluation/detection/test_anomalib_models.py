"""PatchCore and DRAEM of anomalib: training on normal images, reproducibility, error messages, and the stage."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import save_png
from defect_core.errors import InputError
from defect_core.evaluation.detection import anomalib_models
from defect_core.evaluation.detection.anomalib_models import fit_detector
from defect_core.evaluation.detection.config import DetectorConfig
from defect_core.evaluation.weights import find_weights
from defect_core.graph.instances import find_instance, instances
from defect_core.project.params import Params
from defect_core.project.paths import Project

SIDE = 64
INSTALLED = importlib.util.find_spec("anomalib") is not None
needs_anomalib = pytest.mark.skipif(not INSTALLED, reason="needs the extra defectory[anomalib]")
slow = pytest.mark.slow  # Importing anomalib takes ten seconds.


def _normal(seed, count):
    rng = np.random.default_rng(seed)
    stripes = 120 + 40 * np.sin(np.arange(SIDE) / 3)[None, :, None] * np.ones((SIDE, 1, 3))
    return np.stack([(stripes + rng.normal(0, 3, stripes.shape)).clip(0, 255).astype(np.uint8) for _ in range(count)])


def _defective(seed):
    image = _normal(seed, 1)
    image[0, 20:36, 24:44] = (230, 30, 30)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:36, 24:44] = True
    return image, mask


@slow
@needs_anomalib
@pytest.mark.parametrize("backbone", [("tf_efficientnet_lite0", "embedded"), ("resnet18", "none")])
def test_patchcore_detects_a_defect_and_is_reproducible(backbone):
    config = DetectorConfig(backbone=backbone[0], weights=backbone[1], layers=(1, 2), coreset=0.25)
    before = torch.get_rng_state()
    maps = []
    image, mask = _defective(9)
    for _ in range(2):
        maps.append(
            fit_detector(_normal(0, 6), "patchcore", config, seed=1).predict(np.concatenate([image, _normal(8, 2)]))
        )
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(*maps)
    scores = maps[0]
    assert scores.shape == (3, SIDE, SIDE) and scores.dtype == np.float32
    assert scores[0][mask].mean() > 2 * scores[1:].max() or scores[0][mask].mean() > 3 * scores[1:].mean()


@slow
@needs_anomalib
def test_draem_is_trained_and_computes_probabilities():
    config = DetectorConfig(steps=2, batch_size=2)
    one, other = (fit_detector(_normal(0, 3), "draem", config, seed=s).predict(_normal(5, 2)) for s in (1, 2))
    assert one.shape == (2, SIDE, SIDE) and 0 <= one.min() <= one.max() <= 1 and (one != other).any()


@slow
@needs_anomalib
def test_weights_come_from_a_local_folder_or_the_error_names_them(tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("resnet18", pretrained=False)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "resnet18.safetensors")
    monkeypatch.setenv("DEFECTORY_WEIGHTS", str(tmp_path))
    config = DetectorConfig(backbone="resnet18", weights="resnet18.safetensors", layers=(1,))
    fitted = fit_detector(_normal(0, 2), "patchcore", config, seed=0)
    inside = dict(fitted.model.feature_extractor.feature_extractor.named_parameters())
    torch.testing.assert_close(inside["layer1.0.conv1.weight"].detach(), network.layer1[0].conv1.weight.detach())
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    for wrong, message in (
        ({"weights": "other.safetensors"}, "lacks conv1.weight"),
        ({"weights": "embedded"}, "embedded is for tf_efficientnet_lite0"),
        ({"weights": "none", "backbone": "resnet99"}, "backbone 'resnet99'.*expected a network of timm"),
        ({"weights": "none", "layers": (9,)}, r"layers \[9\].*expected a network of timm"),
    ):
        config = DetectorConfig(**{"backbone": "resnet18", "layers": (1,), **wrong})
        with pytest.raises(InputError, match=message):
            fit_detector(_normal(0, 2), "patchcore", config, seed=0)


def test_a_missing_file_package_or_image_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFECTORY_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"gone\.safetensors is neither in the project nor in DEFECTORY_WEIGHTS"):
        find_weights("gone.safetensors", tmp_path, "detect.weights", "a file")
    (tmp_path / "there.safetensors").write_bytes(b"")
    assert find_weights("there.safetensors", None, "", "") == tmp_path / "there.safetensors"
    with pytest.raises(InputError, match="no normal image"):
        fit_detector(_normal(0, 1)[:0], "patchcore", DetectorConfig(), seed=0)
    monkeypatch.setitem(__import__("sys").modules, "anomalib.models.image.draem", None)
    monkeypatch.setitem(__import__("sys").modules, "anomalib", None)
    with pytest.raises(InputError, match=r"pip install 'defectory\[anomalib\]'"):
        fit_detector(_normal(0, 1), "patchcore", DetectorConfig(), seed=0)
    assert anomalib_models.LITE0 in repr(DetectorConfig())


def test_the_stage_reads_generated_normal_images_only_if_configured():
    base = {"products": ("a",), "sources": {"a": {"layout": "demo"}}, "generators": ("crop-paste", "seas")}
    plain, both = Params(**base, detect={}), Params(**base, detect={}, normals={})
    assert find_instance("detect", plain, product="a").inputs == ["data/raw/a", "data/split/a.parquet"]
    assert find_instance("detect", both, product="a").inputs[2:] == ["data/normals/a"]
    assert not list(instances(find_instance("detect", plain, product="a").stage, Params(**base)))


@slow
@needs_anomalib
def test_patchcore_on_the_demo_with_and_without_generated_images(tmp_path):
    """The demo's images, ImageNet features, the segmenter's scores."""
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
    save_png(np.full((128, 128, 3), 128, np.uint8), folder / "images/g.png")  # A grey image changes no score.
    write_manifest([ManifestRow(**row | {"image": "images/g.png", "accepted": True})], folder / "manifest.parquet")
    detect.run(project, "weave")
    result = json.loads((tmp_path / "metrics/detect/weave.json").read_text())
    plain, more = result["rows"]
    assert (plain["model"], plain["normals"], more["normals"]) == ("patchcore", "real", "seas")
    assert more["protocol"]["generated_normal"] == 1 and plain["protocol"]["generated_normal"] == 0
    assert plain["mean"]["iou"] is None and "threshold" in plain["reasons"]["iou"]
    assert plain["mean"]["image_auroc"] > 0.7 and plain["mean"]["pixel_auroc"] > 0.8
    assert abs(plain["mean"]["pixel_auroc"] - more["mean"]["pixel_auroc"]) < 0.05
