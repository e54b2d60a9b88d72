"""The training loop: kill and resume ends with the same weights, bit for bit."""

import pytest
import torch

from defect_core import training


def _network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def _run(network, folder, stop_at=None, seed=3):
    def loss(step, generator):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn((8, 4), generator=generator)
        return ((network(x) - x.sum(1, keepdim=True)) ** 2).mean()

    return training.train(
        network,
        loss,
        steps=20,
        learning_rate=1e-2,
        weight_decay=1e-2,
        seed=seed,
        work_dir=folder,
        label="test",
        checkpoint_every=5,
    )


def test_a_killed_run_goes_on_to_the_same_weights_and_losses(tmp_path):
    whole = _network()
    losses = _run(whole, tmp_path / "whole")
    killed = _network()
    with pytest.raises(KeyboardInterrupt):
        _run(killed, tmp_path / "killed", stop_at=13)
    resumed = _network()
    steps_seen = []
    original = training.step_generator
    training.step_generator = lambda seed, step: steps_seen.append(step) or original(seed, step)
    try:
        again = _run(resumed, tmp_path / "killed")
    finally:
        training.step_generator = original
    assert steps_seen[0] == 10
    assert again == losses
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_loss_falls_and_another_seed_trains_otherwise(tmp_path):
    first, second = _network(), _network()
    losses = _run(first, tmp_path / "a")
    _run(second, tmp_path / "b", seed=4)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert not torch.equal(first[0].weight, second[0].weight)
