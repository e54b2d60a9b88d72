"""The training loop: exact resume, learning rate schedules, settings of single parameters."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from defect_core.training import loop as training
from defect_core.training.loop import Loss, TrainingConfig, train


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
        network, _sum_loss(network, stop_at), config, seed=seed, work_dir=folder, label="test", checkpoint_every=5
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
        train(network, loss, config, seed=1, work_dir=folder, label="test", checkpoint_every=5)
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
