"""Refined mask prediction (RMP) branch of SeaS: shapes, features, loss. Its focal loss: tests/diffusion/test_losses."""

import pytest
import torch
from tiny_unet import tiny_backbone

from defect_core.backbones.load import load_backbone
from defect_core.generators.seas.config import SeasConfig
from defect_core.generators.seas.mask_features import capture_unet_features, decode_image_features
from defect_core.generators.seas.refined_mask_prediction import RefinedMaskPrediction, refined_mask_prediction_loss


def test_the_branch_has_the_shapes_of_the_paper_for_stable_diffusion():
    with torch.device("meta"):
        branch = RefinedMaskPrediction((1280, 640), (512, 512, 256))
        unet_features = torch.empty(1, 1280, 32, 32), torch.empty(1, 640, 64, 64)
        image_features = torch.empty(1, 512, 128, 128), torch.empty(1, 512, 256, 256), torch.empty(1, 256, 512, 512)
        refined, coarse_logits = branch(unet_features, image_features)
        assert branch.extract_coarse(*unet_features).shape == (1, 192, 64, 64)
    assert refined.shape == (1, 2, 512, 512) and coarse_logits.shape == (1, 2, 64, 64)
    assert len(branch.refinements) == 3 and len(branch.attention) == 4


def test_the_two_channels_of_a_prediction_sum_to_one():
    branch = RefinedMaskPrediction((8, 8), (4,), width=24).eval()
    generator = torch.Generator().manual_seed(0)
    unet_features = torch.randn((2, 8, 4, 4), generator=generator), torch.randn((2, 8, 8, 8), generator=generator)
    image_features = [torch.randn((2, 4, 16, 16), generator=generator)]
    with torch.no_grad():
        probabilities = branch(unet_features, image_features)[0].softmax(1)
        assert torch.allclose(probabilities.sum(1), torch.ones(2, 16, 16))
        assert torch.equal(branch.probability(unet_features, image_features), probabilities[:, 1])


def test_without_fuse_the_refinement_modules_have_no_closing_convolution():
    kinds = [
        [type(module.fuse).__name__ for module in RefinedMaskPrediction((8, 8), (4, 4), 24, 1, fuse).refinements]
        for fuse in (True, False)
    ]
    assert kinds == [["Conv2d"] * 2, ["Identity"] * 2]


@pytest.mark.parametrize(("make", "sides"), [(tiny_backbone, [16, 32, 64]), (load_backbone, [32, 64, 128])])
def test_there_is_one_refinement_module_per_image_feature_of_the_backbone(make, sides):
    backbone = make()
    latents = torch.zeros(2, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    image_features = decode_image_features(backbone, latents)
    assert [feature.shape[-1] for feature in image_features] == sides
    branch = RefinedMaskPrediction.for_backbone(backbone, SeasConfig(mask_layers=1))
    text = backbone.encode_text(["a", "b"])
    with torch.no_grad(), capture_unet_features(backbone) as features:
        for _ in range(2):
            backbone.denoiser(latents, torch.tensor(3), text)
    assert len(features) == 2 and features[1].shape[-1] == backbone.latent_size
    with torch.no_grad():
        refined, coarse_logits = branch((features[0], features[1]), image_features)
    assert refined.shape[-1] == backbone.resolution and coarse_logits.shape[-1] == backbone.latent_size


def test_features_are_not_captured_outside_the_context():
    backbone = tiny_backbone()
    latents, text = torch.zeros(1, 4, 8, 8), backbone.encode_text(["a"])
    with capture_unet_features(backbone) as features:
        pass
    with torch.no_grad():
        backbone.denoiser(latents, torch.tensor(3), text)
    assert features == []


def _scene():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, :, 4:12, 6:20] = 1
    masks[1, :, 17, 9] = 1
    signal = torch.nn.functional.adaptive_max_pool2d(masks, 8)
    features = torch.randn((4, 8, 8, 8), generator=generator)
    features[:2, :1] += 4 * signal
    return (features, features), [masks + 0.1 * torch.randn((2, 4, 32, 32), generator=generator)], masks


def test_the_loss_is_zero_for_a_perfect_prediction_only():
    unet_features, image_features, masks = _scene()

    class Oracle(RefinedMaskPrediction):
        """Features are the true logits; the head is the identity."""

        def extract_coarse(self, first, second):
            small = torch.nn.functional.adaptive_max_pool2d(masks, 8)
            return 40 * torch.cat([torch.cat([1 - small, small], 1), *[first.new_tensor(normal)] * 2])

        def refine(self, feature, image_features):
            return 40 * torch.cat([1 - masks, masks], 1)

    oracle = Oracle((8, 8), (4,), 24, 0)
    oracle.head = torch.nn.Identity()
    normal = torch.stack([torch.ones(1, 8, 8), torch.zeros(1, 8, 8)], 1).tolist()
    assert refined_mask_prediction_loss(oracle, unet_features, image_features, masks, 2.0) == pytest.approx(0, abs=1e-6)
    normal = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], 1).tolist()
    assert refined_mask_prediction_loss(oracle, unet_features, image_features, masks, 2.0) > 1


def test_the_branch_learns_defects_of_one_pixel_and_empty_normal_masks():
    unet_features, image_features, masks = _scene()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        branch = RefinedMaskPrediction((8, 8), (4,), width=24, layers=1)
    optimizer = torch.optim.AdamW(branch.parameters(), lr=3e-3)
    for _ in range(80):
        loss = refined_mask_prediction_loss(branch, unet_features, image_features, masks, 2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    branch.eval()
    with torch.no_grad():
        predicted = branch.probability((unet_features[0][:2], unet_features[1][:2]), image_features) > 0.5
        coarse_normal = branch.head(branch.extract_coarse(unet_features[0][2:], unet_features[1][2:])).softmax(1)[:, 1]
    expected = masks[:, 0] > 0.5
    assert (predicted & expected).sum() / (predicted | expected).sum() > 0.9
    assert predicted[1, 17, 9] and coarse_normal.max() < 0.5


def test_with_zero_image_features_the_refined_feature_is_the_enlarged_coarse_one():
    branch = RefinedMaskPrediction((8, 8), (4,), width=24, fuse=False)
    (refinement,) = branch.refinements
    torch.nn.init.zeros_(refinement.fine.weight)
    torch.nn.init.zeros_(refinement.fine.bias)
    feature = torch.randn((1, 24, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        refined = branch.refine(feature, [torch.ones(1, 4, 16, 16)])
    assert torch.allclose(refined, torch.nn.functional.interpolate(feature, size=(16, 16), mode="bilinear"))


def test_captured_features_are_outputs_of_the_up_blocks():
    backbone = tiny_backbone()
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    text, outputs = backbone.encode_text([""]), []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for block in backbone.denoiser.up_blocks
    ]
    with torch.no_grad(), capture_unet_features(backbone) as features:
        backbone.denoiser(latents, 10, text)
    for hook in hooks:
        hook.remove()
    assert len(features) == 2
    assert all(any(torch.equal(feature, out) for out in outputs) and feature.abs().max() > 0 for feature in features)
