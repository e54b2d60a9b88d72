"""Muon: orthogonal update directions for every shape, with the update size of AdamW."""

import pytest
import torch
from torch import nn

from defect_core.training import muon
from defect_core.training.muon import Muon, orthogonalize, select_hidden_weights

SHAPES = [(24, 24), (24, 90), (90, 24), (24, 240), (240, 24)]


@pytest.mark.parametrize("shape", SHAPES)
def test_update_keeps_singular_vectors_and_sets_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, sizes, right = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    direction = orthogonalize(left * torch.linspace(0.05, 1, sizes.shape[1]) @ right)
    values = torch.linalg.svdvals(direction)
    assert values.min() > 0.6
    assert values.max() < 1.3
    overlap = torch.einsum("nij,nij->n", direction, left @ right) / sizes.shape[1]
    assert (overlap > 0.8).all()


def test_iteration_on_gram_matrices_gives_the_same_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 240) * torch.logspace(-2, 0, 24)[:, None]
    directions = []
    for other in ("_iterate", "_iterate_on_gram"):
        with monkeypatch.context() as patch:
            patch.setattr(muon, other, lambda x: pytest.fail("the other iteration was expected"))
            patch.setattr(muon, "_GRAM_ASPECT_RATIO", 5 if other == "_iterate" else 100)
            directions.append(orthogonalize(matrices))
    torch.testing.assert_close(*directions, atol=0.02, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_update_size_does_not_depend_on_the_gradient_scale(scale: float) -> None:
    """The root mean square is that of AdamW, 0.2 times the learning rate (Liu et al. 2025, eq. 4)."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.zeros(shape)) for shape in (*SHAPES, (24, 10, 3, 3))]
    optimizer = Muon(weights, torch.tensor(0.01))
    for weight in weights:
        weight.grad = scale * torch.randn_like(weight)
    optimizer.step()
    for weight in weights:
        assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.002, rel=0.25)
        assert (weight * weight.grad).sum() < 0


def test_memory_layout_of_a_kernel_does_not_change_its_update() -> None:
    torch.manual_seed(0)
    first, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(first.clone(memory_format=layout))
        weight.grad = gradient.clone(memory_format=layout)
        Muon([weight], torch.tensor(0.1)).step()
        moved.append(weight.detach())
    assert torch.allclose(*moved, atol=1e-6)


def test_with_every_2_each_weight_moves_twice_as_far_in_every_other_step() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(3, 2, 24, 24)  # by step and weight
    moved = {}
    for every in (1, 2):
        weights = [nn.Parameter(torch.zeros(24, 24)) for _ in range(2)]
        optimizer, paths = Muon(weights, torch.tensor(0.01), every), []
        for index, step in enumerate(gradients):
            before = [weight.detach().clone() for weight in weights]
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient
            optimizer.step(index)
            paths.append([weight.detach() - old for weight, old in zip(weights, before, strict=True)])
        moved[every] = paths
    assert [[bool(path.any()) for path in step] for step in moved[2]] == [[True, False], [False, True], [True, False]]
    assert all(path.any() for step in moved[1] for path in step)
    torch.testing.assert_close(moved[2][1][1], 2 * moved[1][1][1], rtol=0.01, atol=1e-5)


def test_hidden_weights_are_the_matrices_between_first_and_last_layer() -> None:
    network = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("conv_in", "mid_block", "conv_out", "conv_outer")})
    assert list(select_hidden_weights(dict(network.named_parameters()))) == ["mid_block.weight", "conv_outer.weight"]
