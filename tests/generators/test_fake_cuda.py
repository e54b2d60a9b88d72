"""Every method trains, is killed, resumes, is saved, loaded and samples on a device that refuses tensors of the CPU.

The device reports `cuda:0` and computes on the CPU (see `fake_cuda.py`), so that a mismatch of devices or number types
fails without a GPU.
"""

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, DeviceMismatchError, FakeCudaTensor, fake_cuda
from plate_examples import plate_examples
from tiny_unet import tiny_backbone

from defect_core.backbones import load_backbone
from defect_core.backbones.compute import ComputeConfig
from defect_core.generators.base import SampleRequest
from defect_core.generators.registry import generator_class, generator_config
from defect_core.training import loop

QUICK = {
    "anomaly-diffusion": {
        **{"steps": 3, "batch_size": 2, "variants": 1, "sampling_steps": 4},
        **{"masks": "generated", "mask_model": {"steps": 1, "sampling_steps": 2}},
    },
    "cadiff": {"steps": 3, "batch_size": 2, "variants": 1, "sampling_steps": 4, "contrast_views": 2},
    "defectdiffu": {
        **{"steps": 3, "batch_size": 2, "variants": 1, "normal_variants": 1},
        **{"sampling_steps": 4, "start_level": 1},
    },
    "disentangled-inversion": {"steps": 3, "batch_size": 2, "variants": 1, "sampling_steps": 4},
    "seas": {"steps": 3, "mask_steps": 2, "batch_size": 2, "variants": 1, "sampling_steps": 4, "mask_layers": 1},
}


@pytest.fixture
def examples():
    return plate_examples(2, slice(8, 32), slice(8, 24))


@pytest.mark.parametrize("name", QUICK)
def test_a_method_works_on_one_device_and_waits_for_it_only_between_steps(name, examples, tmp_path, monkeypatch):
    steps = _record_traffic_of_steps(monkeypatch)
    with fake_cuda() as traffic:
        generator = _create(name)
        steps.start(traffic, kill_at=2)
        with pytest.raises(KeyboardInterrupt):
            generator.fit(examples, tmp_path / "work", seed=1)
        assert steps.synchronisations() == 0, steps.where()
        steps.start(traffic, kill_at=None)
        generator.fit(examples, tmp_path / "work", seed=1)
        assert steps.synchronisations() == 0, steps.where()
        generator.save(tmp_path / "saved")
        loaded = generator_class(name).load(tmp_path / "saved", _backbone(name))
        calls = _record_traffic_of_calls(loaded, traffic)
        pairs = list(loaded.sample(_requests(examples)))
    assert [pair.image.shape for pair in pairs] == [(64, 64, 3)] * 2
    # AnomalyDiffusion samples masks, decodes them, and samples images: it waits once, between the two loops.
    assert len(calls) >= 3 and np.count_nonzero(np.diff(calls)) <= (name == "anomaly-diffusion"), traffic.where[-20:]


def test_the_device_refuses_a_tensor_of_the_cpu_and_counts():
    with fake_cuda() as traffic:
        linear = torch.nn.Linear(3, 2).to("cuda")
        assert linear.weight.device == DEVICE and isinstance(linear.weight, torch.nn.Parameter)
        with pytest.raises(DeviceMismatchError, match="addmm"):
            linear(torch.ones(1, 3))
        before = traffic.copy()
        out = linear(torch.ones(1, 3).to("cuda")).sum()
        out.backward()
        assert isinstance(linear.weight.grad, FakeCudaTensor)
        assert float(out) and out.cpu().device.type == "cpu" and torch.zeros(2).to(out).device == DEVICE
        with pytest.raises(TypeError, match="can't convert"):
            linear.weight.detach().numpy()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert linear(torch.ones(1, 3, device="cuda")).dtype == torch.bfloat16
        counts = traffic.to_device - before.to_device, traffic.to_cpu - before.to_cpu
        assert counts == (2, 1) and traffic.synchronisations - before.synchronisations == 2


def _create(name):
    return generator_class(name).create(generator_config(name, QUICK[name]), _backbone(name))


def _backbone(name):
    backbone = load_backbone("embedded") if name == "defectdiffu" else tiny_backbone()
    return backbone.configure(ComputeConfig(checkpoint_every=2)).to(DEVICE)


def _requests(examples):
    normal = [example for example in examples if example.mask is None]
    defective = [example for example in examples if example.mask is not None]
    return [
        SampleRequest(
            *(f"{index}", "plate", source.defect, index, image.image, source.mask), source=source, warped=source.image
        )
        for index, (source, image) in enumerate(zip(defective, normal, strict=True))
    ]


class _Steps:
    """Traffic at the begin of each training step."""

    def __init__(self):
        self.seen, self.traffic, self.kill_at = [], None, None

    def start(self, traffic, kill_at):
        self.seen, self.traffic, self.kill_at = [], traffic, kill_at

    def record(self, step):
        self.seen.append((step, self.traffic.copy()))
        if step == self.kill_at:
            raise KeyboardInterrupt

    def _neighbours(self):
        # A checkpoint is written before every second step, and the loss is checked with it.
        pairs = zip(self.seen, self.seen[1:], strict=False)
        return [(a, b) for (i, a), (j, b) in pairs if j == i + 1 and j % 2 == 1]

    def synchronisations(self):
        return sum(not place.startswith(("copy", "tolist", "aten.index")) for place in self.where())

    def where(self):
        return [place for a, b in self._neighbours() for place in b.where[len(a.where) :] if "torch." not in place]


def _record_traffic_of_steps(monkeypatch):
    steps, step_generator = _Steps(), loop.step_generator

    def record(seed, step):
        steps.record(step)
        return step_generator(seed, step)

    monkeypatch.setattr(loop, "step_generator", record)
    return steps


def _record_traffic_of_calls(generator, traffic):
    """Return a list to which each call of the denoiser appends the number of synchronisations before it."""
    calls = []
    network = getattr(generator, "model", None) if generator.name == "defectdiffu" else generator.backbone.denoiser
    network.register_forward_pre_hook(lambda *_: calls.append(traffic.synchronisations))
    return calls
