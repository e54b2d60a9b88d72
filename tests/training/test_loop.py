"""The training loop: kill and resume ends with the same weights, bit for bit."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from defect_core.training import loop as training
from defect_core.training.loop import bf16_autocast, bf16_inference


def _network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def _train(network, loss, folder, **settings):
    plain = {"learning_rate": 1e-2, "weight_decay": 0.0, "seed": 1, "label": "test"}
    return training.train(network, loss, work_dir=folder, **plain | settings)


def _run(network, folder, stop_at=None, seed=3, muon=False):
    def loss(step, generator):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn((8, 4), generator=generator)
        return ((network(x) - x.sum(1, keepdim=True)) ** 2).mean()

    return _train(network, loss, folder, steps=20, checkpoint_every=5, muon=muon, seed=seed, weight_decay=1e-2)


@pytest.mark.parametrize("muon", [False, True])
def test_a_killed_run_goes_on_to_the_same_weights_and_losses(muon, tmp_path):
    whole = _network()
    losses = _run(whole, tmp_path / "whole", muon=muon)
    killed = _network()
    with pytest.raises(KeyboardInterrupt):
        _run(killed, tmp_path / "killed", stop_at=8, muon=muon)
    resumed = _network()
    steps_seen = []
    original = training.step_generator
    training.step_generator = lambda seed, step: steps_seen.append(step) or original(seed, step)
    try:
        again = _run(resumed, tmp_path / "killed", muon=muon)
    finally:
        training.step_generator = original
    assert steps_seen[0] == 5
    assert again == losses
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_loss_falls_and_another_seed_trains_otherwise(tmp_path):
    first, second = _network(), _network()
    losses = _run(first, tmp_path / "a")
    _run(second, tmp_path / "b", seed=4)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert not torch.equal(first[0].weight, second[0].weight)


@pytest.mark.parametrize("muon", [False, True])
def test_the_rate_falls_as_a_cosine_and_with_muon_in_a_line_from_half_on(muon, tmp_path):
    network, seen = _network(), []

    def loss(step, generator):
        return network[2].bias.sum() + 0 * sum(parameter.sum() for parameter in network.parameters())

    _train(
        network,
        loss,
        tmp_path,
        steps=24,
        warmup=4,
        watch=lambda done: seen.append(float(network[2].bias.detach())),
        muon=muon,
    )
    rates = [(before - after) / 1e-2 for before, after in pairwise(seen)]  # AdamW's step on an even slope
    assert rates[:3] == pytest.approx([0.5, 0.75, 1], abs=1e-3)
    halves = [rates[3 + 10], rates[3 + 15]]
    assert halves == pytest.approx([1, 0.5] if muon else [0.5, 0.5 * (1 + math.cos(0.75 * math.pi))], abs=1e-3)


def test_overrides_give_named_parameters_their_own_rate_and_decay(tmp_path):
    network = _network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def loss(step, generator):
        return network(torch.ones(1, 4)).sum() * 0

    _train(
        network,
        loss,
        tmp_path,
        steps=2,
        weight_decay=0.5,
        overrides={"0": {"learning_rate": 0.0}, "2.weight": {"weight_decay": 0.0}},
    )
    unchanged = {name for name, tensor in network.state_dict().items() if torch.equal(tensor, before[name])}
    assert unchanged == {"0.weight", "0.bias", "2.weight"}


def test_a_parameter_that_had_no_gradient_before_the_kill_resumes(tmp_path):
    def run(network, folder, stop_at=None):
        def loss(step, generator):
            if step == stop_at:
                raise KeyboardInterrupt
            value = (network[0].weight ** 2).sum()
            return value + (network[2].weight ** 2).sum() if step > 7 else value

        _train(network, loss, folder, steps=10, checkpoint_every=5)
        return network[2].weight

    whole = run(_network(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(_network(), tmp_path / "killed", stop_at=6)
    assert torch.equal(whole, run(_network(), tmp_path / "killed"))


@pytest.mark.parametrize("native", [True, False])
def test_drawing_is_in_bfloat16_only_where_the_processor_has_it(native, monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native, raising=False)
    convolution, norm, linear = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4 * 36, 1)
    network = nn.Sequential(convolution, norm, nn.Flatten(), linear)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    with pytest.raises(KeyboardInterrupt), bf16_inference(network):
        kinds = {parameter.dtype for layer in (convolution, linear) for parameter in layer.parameters()}
        assert kinds == ({torch.bfloat16} if native else {torch.float32})
        assert norm.weight.dtype == torch.float32
        assert network(torch.zeros(1, 1, 8, 8)).dtype == kinds.pop()
        raise KeyboardInterrupt
    for name, parameter in network.named_parameters():  # put back, whatever happened within
        assert parameter.dtype == torch.float32 and torch.equal(parameter, before[name])


@pytest.mark.parametrize("native", [True, False])
def test_training_is_in_bfloat16_only_where_the_processor_has_it(native, monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native, raising=False)
    with bf16_autocast(torch.device("cpu"), 16):
        assert torch.is_autocast_enabled("cpu") == native
    with bf16_autocast(torch.device("cpu"), 64):  # attention written out would not fit
        assert not torch.is_autocast_enabled("cpu")


def test_attention_written_out_is_attention(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    query, key, value = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    asked = ({}, {"scale": 0.7}, {"attn_mask": mask})
    wanted = [F.scaled_dot_product_attention(query, key, value, **each) for each in asked]
    ours, counted = training._attention, []
    monkeypatch.setattr(training, "_attention", lambda *a, **k: counted.append(a) or ours(*a, **k))
    for number, arithmetic in enumerate(
        (bf16_inference(nn.Linear(1, 1)), bf16_autocast(torch.device("cpu"), 3, written_out=True)), start=1
    ):
        with arithmetic:
            drawn = [F.scaled_dot_product_attention(query, key, value, **each) for each in asked]
        for one, other in zip(drawn, wanted, strict=True):
            torch.testing.assert_close(one.float(), other, atol=0.03, rtol=0)
        assert len(counted) == 2 * number  # the mask is not for ours
