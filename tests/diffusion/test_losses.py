"""Losses against values computed by hand, and their properties."""

import pytest
import torch
from torch.nn import functional as F

from defect_core.diffusion.losses import alignment_loss, focal_loss, map_mask_iou, noise_loss, resize_mask


def _noises():
    return torch.randn((2, 2, 3, 4, 4), generator=torch.Generator().manual_seed(0))


def test_noise_loss_reductions_have_their_reference_values():
    noise, predicted = torch.zeros(1, 2, 4, 4), torch.full((1, 2, 4, 4), 3.0)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0, :2] = 1
    assert noise_loss(noise, predicted) == 9
    assert noise_loss(noise, predicted, mask) == 9 * 4 / 32
    assert noise_loss(noise, predicted, mask, "masked_mean") == 9
    assert noise_loss(noise, predicted, mask, "sum") == 36


@pytest.mark.parametrize("reduction", ["global_mean", "masked_mean", "sum"])
def test_noise_loss_ignores_elements_outside_the_mask(reduction):
    noise, predicted = _noises()
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., 1:3, 1:3] = 1
    predicted.requires_grad_(True)
    loss = noise_loss(noise, predicted, mask, reduction)
    loss.backward()
    assert (predicted.grad * (1 - mask)).abs().max() == 0 and predicted.grad.abs().max() > 0
    disturbed = predicted + 5 * (1 - mask)
    assert noise_loss(noise, disturbed, mask, reduction) == loss
    assert noise_loss(noise, noise + 5 * (1 - mask), mask, reduction) == 0


@pytest.mark.parametrize("reduction", ["global_mean", "masked_mean", "sum"])
def test_noise_loss_of_an_empty_mask_is_zero_and_finite(reduction):
    noise, predicted = _noises()
    assert noise_loss(noise, predicted, torch.zeros(2, 1, 4, 4), reduction) == 0


def test_single_pixel_remains_with_max_and_vanishes_with_bilinear_half():
    mask = torch.zeros(1, 1, 64, 64)
    mask[0, 0, 21, 44] = 1
    for side in (32, 16, 10, 4, 1):
        small = resize_mask(mask, side, "max")
        assert small.shape == (1, 1, side, side) and small.sum() >= 1
    assert resize_mask(mask, 16, "max")[0, 0, 21 // 4, 44 // 4] == 1
    assert resize_mask(mask, 16, "bilinear_half").sum() == 0


def test_mask_policies_have_their_reference_values():
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]])[None, None]
    assert resize_mask(mask, 2, "max")[0, 0].tolist() == [[1, 0], [1, 1]]
    assert resize_mask(mask, 2, "area")[0, 0].tolist() == [[0.75, 0], [0.25, 0.25]]
    assert resize_mask(mask, 2, "bilinear_half")[0, 0].tolist() == [[1, 0], [0, 0]]
    assert resize_mask(mask, 2, "nearest")[0, 0].tolist() == [[1, 0], [0, 0]]
    assert torch.equal(resize_mask(mask, 4, "area"), mask)
    with pytest.raises(ValueError, match="unknown mask policy 'middle'"):
        resize_mask(mask, 2, "middle")


def test_focal_loss_of_a_certain_correct_answer_is_zero_and_finite():
    target = torch.tensor([[[0, 1], [1, 0]]])
    logits = (60.0 * F.one_hot(target, 2).permute(0, 3, 1, 2)).requires_grad_(True)
    loss = focal_loss(logits, target, 2.0)
    loss.backward()
    assert abs(loss.item()) < 1e-12 and logits.grad.isfinite().all()


def test_focal_loss_with_gamma_zero_is_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 2, 5, 5), generator=generator)
    target = torch.randint(2, (2, 5, 5), generator=generator)
    assert torch.allclose(focal_loss(logits, target, 0.0), F.cross_entropy(logits, target))


def test_focal_loss_has_its_reference_value():
    logits = torch.tensor([0.8, 0.2]).log()[None, :, None, None]
    value = focal_loss(logits, torch.tensor([[[1]]]), 2.0).item()
    assert value == pytest.approx(-(0.8**2) * torch.tensor(0.2).log().item())


def test_alignment_loss_is_zero_if_maps_equal_masks():
    masks = torch.eye(4).expand(2, 3, 4, 4)
    assert alignment_loss(masks.clone(), masks, "token") == 0
    assert alignment_loss(masks.clone(), masks, "paper") == 0


def test_opposite_errors_cancel_in_the_paper_form_only():
    masks = torch.full((1, 2, 4, 4), 0.5)
    maps = masks + torch.tensor([0.25, -0.25])[None, :, None, None]
    assert alignment_loss(maps, masks, "paper") == 0
    assert alignment_loss(maps, masks, "token") == pytest.approx(0.0625)
    with pytest.raises(ValueError, match="unknown form"):
        alignment_loss(maps, masks, "official")


def test_map_mask_iou_compares_the_strongest_positions_with_the_mask():
    masks = torch.zeros(3, 1, 4, 4)
    masks[:2, :, :2, :2] = 1
    maps = torch.rand((3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    maps[0] += 2 * masks[0]
    maps[1, 0, 0, :2] += 2
    maps[1, 0, 3, :2] += 2
    scores = map_mask_iou(maps, masks)
    assert scores[:2].tolist() == [1, pytest.approx(2 / 6)]
    assert scores[2].isnan()
