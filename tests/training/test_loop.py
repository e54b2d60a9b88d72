"""The training loop: exact resume, learning rate schedules, settings of single parameters."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from defect_core.backbones.compute import ComputeConfig
from defect_core.training import loop as training
from defect_core.training.half_moments import round_stochastically
from defect_core.training.loop import Loss, TrainingConfig, train

EVERY_FIVE = ComputeConfig(checkpoint_every=5)


def _network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def _sum_loss(network: nn.Module, stop_at: int | None = None) -> Loss:
    def loss(step: int, generator: torch.Generator) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn((8, 4), generator=generator)
        return ((network(x) - x.sum(1, keepdim=True)) ** 2).mean()

    return loss


def _run(
    network: nn.Module, folder: Path, stop_at: int | None = None, seed: int = 3, use_muon: bool = False
) -> list[float]:
    config = TrainingConfig(20, 1e-2, 1e-2, use_muon=use_muon)
    return train(
        network, _sum_loss(network, stop_at), config, seed=seed, work_dir=folder, label="test", compute=EVERY_FIVE
    )


@pytest.mark.parametrize("use_muon", [False, True])
def test_killed_run_resumes_to_the_same_weights_and_losses(
    use_muon: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = _network()
    losses = _run(uninterrupted, tmp_path / "uninterrupted", use_muon=use_muon)
    with pytest.raises(KeyboardInterrupt):
        _run(_network(), tmp_path / "killed", stop_at=8, use_muon=use_muon)
    resumed, steps = _network(), []
    step_generator = training.step_generator
    monkeypatch.setattr(training, "step_generator", lambda seed, step: steps.append(step) or step_generator(seed, step))
    assert _run(resumed, tmp_path / "killed", use_muon=use_muon) == losses
    assert steps[0] == 5
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_parameter_without_gradient_before_the_kill_resumes(tmp_path: Path) -> None:
    def run(folder: Path, stop_at: int | None = None) -> Tensor:
        network = _network()

        def loss(step: int, generator: torch.Generator) -> Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            value = (network[0].weight ** 2).sum()
            return value + (network[2].weight ** 2).sum() if step > 7 else value

        config = TrainingConfig(10, 1e-2, 0.0)
        train(network, loss, config, seed=1, work_dir=folder, label="test", compute=EVERY_FIVE)
        return network[2].weight

    uninterrupted = run(tmp_path / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop_at=6)
    assert torch.equal(uninterrupted, run(tmp_path / "killed"))


def test_loss_falls_and_another_seed_gives_other_weights(tmp_path: Path) -> None:
    first, second = _network(), _network()
    losses = _run(first, tmp_path / "a")
    _run(second, tmp_path / "b", seed=4)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert not torch.equal(first[0].weight, second[0].weight)


@pytest.mark.parametrize("use_muon", [False, True])
def test_adamw_steps_follow_the_learning_rate_schedule(use_muon: bool, tmp_path: Path) -> None:
    """On a constant slope the step of AdamW is the learning rate."""
    network, biases = _network(), []
    config = TrainingConfig(24, 1e-2, 0.0, warmup_steps=4, use_muon=use_muon)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return network[2].bias.sum() + 0 * sum(parameter.sum() for parameter in network.parameters())

    def after_step(done: int) -> bool:
        biases.append(float(network[2].bias.detach()))
        return False

    train(network, loss, config, seed=1, work_dir=tmp_path, label="test", after_step=after_step)
    factors = [(before - after) / 1e-2 for before, after in pairwise(biases)]
    assert factors == pytest.approx([config.learning_rate_factor(step) for step in range(1, 24)], abs=1e-3)


def test_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    config = TrainingConfig(24, 1e-2, 0.0, warmup_steps=4)
    factors = [config.learning_rate_factor(step) for step in (0, 1, 3, 14, 19)]
    assert factors == pytest.approx([0.25, 0.5, 1, 0.5, 0.5 * (1 + math.cos(0.75 * math.pi))])


def test_learning_rate_with_muon_is_constant_and_then_falls_linearly() -> None:
    config = TrainingConfig(24, 1e-2, 0.0, warmup_steps=4, use_muon=True)
    assert [config.learning_rate_factor(step) for step in (1, 4, 14, 19)] == pytest.approx([0.5, 1, 1, 0.5])


def test_training_stops_when_after_step_returns_true(tmp_path: Path) -> None:
    network = _network()
    config = TrainingConfig(20, 1e-2, 0.0)
    losses = train(
        network, _sum_loss(network), config, seed=1, work_dir=tmp_path, label="test", after_step=lambda done: done == 6
    )
    assert len(losses) == 6


def test_overrides_set_learning_rate_and_decay_of_named_parameters(tmp_path: Path) -> None:
    network = _network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    overrides = {"0": {"learning_rate": 0.0}, "2.weight": {"weight_decay": 0.0}}

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return network(torch.ones(1, 4)).sum() * 0

    train(network, loss, TrainingConfig(2, 1e-2, 0.5, overrides=overrides), seed=1, work_dir=tmp_path, label="test")
    unchanged = {name for name, tensor in network.state_dict().items() if torch.equal(tensor, before[name])}
    assert unchanged == {"0.weight", "0.bias", "2.weight"}


def test_parts_of_a_batch_have_the_gradient_of_the_whole(tmp_path: Path) -> None:
    def run(folder: Path, parts: int) -> tuple[list[float], Tensor]:
        network = _network()

        def loss(_step: int, generator: torch.Generator) -> Iterator[Tensor]:
            for x in torch.randn((8, 4), generator=generator).chunk(parts):
                yield ((network(x) - x.sum(1, keepdim=True)) ** 2).sum() / 8

        losses = train(network, loss, TrainingConfig(5, 1e-2, 0.0), seed=1, work_dir=folder, label="test")
        return losses, network[0].weight.detach()

    (whole, expected), (parts, weight) = run(tmp_path / "a", 1), run(tmp_path / "b", 4)
    assert parts == pytest.approx(whole, abs=2e-6) and torch.allclose(weight, expected, atol=1e-6)


def test_running_statistics_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    def run(folder: Path, stop_at: int | None = None) -> Tensor:
        network = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))

        def loss(step: int, generator: torch.Generator) -> Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return network(torch.randn((8, 4), generator=generator) + step).square().mean()

        nn.init.ones_(network[0].weight)
        nn.init.zeros_(network[0].bias)
        config = TrainingConfig(8, 1e-2, 0.0)
        train(network, loss, config, seed=1, work_dir=folder, label="test", compute=EVERY_FIVE)
        return network[1].running_mean

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop_at=6)
    assert torch.equal(run(tmp_path / "b"), run(tmp_path / "a"))


def test_moments_in_bfloat16_train_as_those_in_float32_do(tmp_path: Path) -> None:
    """The second moment must not freeze: the gradients become ten times larger after half of the steps."""

    def run(folder: Path, moments: Literal["fp32", "bf16"], stop_at: int | None = None) -> Tensor:
        network = _network()

        def loss(step: int, generator: torch.Generator) -> Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            x = torch.randn((8, 4), generator=generator)
            scale = 1 if step < 100 else 10
            return scale * ((network(x) - x.sum(1, keepdim=True)) ** 2).mean()

        config = TrainingConfig(200, 3e-3, 1e-2, max_grad_norm=None, schedule="constant", moments=moments)
        train(network, loss, config, seed=1, work_dir=folder, label="test", compute=EVERY_FIVE)
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    start = torch.cat([parameter.detach().flatten() for parameter in _network().parameters()])
    exact, half = run(tmp_path / "a", "fp32"), run(tmp_path / "b", "bf16")
    assert (half - exact).norm() < 0.05 * (exact - start).norm()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", "bf16", stop_at=7)
    assert torch.equal(run(tmp_path / "c", "bf16"), half)


def test_stochastic_rounding_is_unbiased() -> None:
    values = torch.full((1, 1), 1 + 1 / 512)  # a quarter of the way from 1 to the next number of bfloat16
    rounded = torch.cat([round_stochastically(values, step).float() for step in range(4000)])
    assert rounded.unique().tolist() == [1.0, 1 + 1 / 128]
    assert float((rounded > 1).float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_gradient_norm_is_clipped_unless_it_is_none(clip: float | None, tmp_path: Path) -> None:
    network, norms = nn.Linear(2, 1, bias=False), []

    def loss(_step: int, _generator: torch.Generator) -> Tensor:
        return (network.weight * torch.tensor([[3.0, 4.0]])).sum()

    def record(*_: object) -> None:
        norms.append(float(network.weight.grad.norm()))

    config = TrainingConfig(1, 1e-2, 0.0, max_grad_norm=clip)
    with register_optimizer_step_pre_hook(record):
        train(network, loss, config, seed=1, work_dir=tmp_path, label="test")
    assert norms == [pytest.approx(5.0 if clip is None else clip, abs=1e-4)]


def test_a_constant_schedule_has_neither_warm_up_nor_decay() -> None:
    config = TrainingConfig(100, 1e-3, 0.0, schedule="constant")
    assert {config.learning_rate_factor(step) for step in range(100)} == {1.0}


def test_float16_scales_the_gradients_and_resumes(tmp_path: Path) -> None:
    """Without scaling a gradient of 1e-8 is 0 in float16, and AdamW would not move the weight."""
    compute = ComputeConfig(dtype="fp16", checkpoint_every=2)

    def run(folder: Path, stop_at: int | None = None) -> Tensor:
        network = _network()

        def loss(step: int, generator: torch.Generator) -> Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            x = torch.randn((8, 4), generator=generator)
            return (network(x).half() * torch.tensor(1e-4, dtype=torch.float16)).float().mean() * 1e-3

        config = TrainingConfig(6, 1e-2, 0.0, max_grad_norm=None, schedule="constant")
        train(network, loss, config, seed=1, work_dir=folder, label="test", compute=compute)
        return network[2].weight.detach()

    whole = run(tmp_path / "a")
    assert not torch.allclose(whole, _network()[2].weight, atol=1e-2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop_at=3)
    assert torch.equal(run(tmp_path / "b"), whole)
