"""Checkpoints: saved tensors come back, and allocated moments equal those that AdamW creates."""

from pathlib import Path

import pytest
import torch
from torch import nn

from defect_core.training.checkpoint import allocate_moments, load_checkpoint, optimizer_state, save_checkpoint


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new/checkpoint.safetensors"
    kernel = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    save_checkpoint(path, {"kernel": kernel, "step": torch.tensor(3.0)}, step=3, losses=[0.5, 0.25])
    restored = {"kernel": torch.zeros(4, 3, 2, 2), "step": torch.zeros(())}
    assert load_checkpoint(path, restored) == {"step": 3, "losses": [0.5, 0.25]}
    assert torch.equal(restored["kernel"], kernel)
    assert float(restored["step"]) == 3


def test_missing_checkpoint_gives_none_and_changes_nothing(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    assert load_checkpoint(tmp_path / "none.safetensors", {"a": tensor}) is None
    assert torch.equal(tensor, torch.ones(2))


@pytest.mark.parametrize("fused", [False, True])
def test_allocated_moments_equal_those_of_the_first_step(fused: bool) -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)) for _ in range(2)]
    weights[1].data.copy_(weights[0].data)
    plain, allocated = (torch.optim.AdamW([weight], fused=fused) for weight in weights)
    allocate_moments(allocated)
    for _ in range(3):
        for weight, optimizer in zip(weights, (plain, allocated), strict=True):
            weight.grad = weight.detach().sin()
            optimizer.step()
    assert torch.equal(weights[0], weights[1])
    first = optimizer_state([("w", weights[0])], plain)
    second = optimizer_state([("w", weights[1])], allocated)
    assert first.keys() == second.keys() == {"step.w", "exp_avg.w", "exp_avg_sq.w"}
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert value.stride() == second[name].stride()
