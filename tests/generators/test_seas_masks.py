"""SeaS: the refined mask prediction branch (brief §3.6: 7; its focal loss, 8, in tests/diffusion/test_losses)."""

import pytest
import torch
from tiny_unet import tiny_backbone

from defect_core.backbones import load_backbone
from defect_core.generators.seas.mask_branch import (
    MaskBranch,
    branch_loss,
    image_features,
    make_branch,
    watch_features,
)


def test_the_branch_has_the_shapes_of_the_paper_on_stable_diffusions_features():
    with torch.device("meta"):
        branch = MaskBranch((1280, 640), (512, 512, 256))
        coarse = torch.empty(1, 1280, 32, 32), torch.empty(1, 640, 64, 64)
        fine = torch.empty(1, 512, 128, 128), torch.empty(1, 512, 256, 256), torch.empty(1, 256, 512, 512)
        refined, rough = branch(coarse, fine)
        assert branch.coarse(*coarse).shape == (1, 192, 64, 64)
    assert refined.shape == (1, 2, 512, 512) and rough.shape == (1, 2, 64, 64)
    assert len(branch.refinements) == 3 and len(branch.attention) == 4


def test_the_two_channels_of_a_prediction_sum_to_one():
    branch = MaskBranch((8, 8), (4,), width=24).eval()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((2, 8, 4, 4), generator=generator), torch.randn((2, 8, 8, 8), generator=generator)
    fine = [torch.randn((2, 4, 16, 16), generator=generator)]
    with torch.no_grad():
        both = branch(coarse, fine)[0].softmax(1)
        assert torch.allclose(both.sum(1), torch.ones(2, 16, 16))
        assert torch.equal(branch.probability(coarse, fine), both[:, 1])


def test_compat_has_no_closing_convolution_in_its_refinement_modules():
    kinds = [
        [type(module.fuse).__name__ for module in MaskBranch((8, 8), (4, 4), 24, 1, fuse).refinements]
        for fuse in (True, False)
    ]
    assert kinds == [["Conv2d"] * 2, ["Identity"] * 2]


@pytest.mark.parametrize(("make", "sides"), [(tiny_backbone, [16, 32, 64]), (load_backbone, [32, 64, 128])])
def test_there_is_one_refinement_module_per_size_that_the_backbone_offers_up_to_its_images(make, sides):
    backbone = make()
    latents = torch.zeros(2, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    fine = image_features(backbone, latents)
    assert [feature.shape[-1] for feature in fine] == sides
    branch = make_branch(backbone, 24, 1, True)
    text = backbone.encode_text(["a", "b"])
    with torch.no_grad(), watch_features(backbone) as features:
        for _ in range(2):
            backbone.denoiser(latents, torch.tensor(3), text)
    assert len(features) == 2 and features[1].shape[-1] == backbone.latent_size
    with torch.no_grad():
        refined, rough = branch((features[0], features[1]), fine)
    assert refined.shape[-1] == backbone.resolution and rough.shape[-1] == backbone.latent_size


def test_features_are_no_longer_watched_after_the_block():
    backbone = tiny_backbone()
    latents, text = torch.zeros(1, 4, 8, 8), backbone.encode_text(["a"])
    with watch_features(backbone) as features:
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


def test_a_perfect_prediction_costs_nothing_and_a_defect_on_a_normal_image_costs():
    coarse, fine, masks = _scene()

    class Oracle(MaskBranch):
        """Feature = the true logits; the head passes them on."""

        def coarse(self, first, second):
            small = torch.nn.functional.adaptive_max_pool2d(masks, 8)
            return 40 * torch.cat([torch.cat([1 - small, small], 1), *[first.new_tensor(normal)] * 2])

        def refine(self, feature, fine):
            return 40 * torch.cat([1 - masks, masks], 1)

    oracle = Oracle((8, 8), (4,), 24, 0)
    oracle.head = torch.nn.Identity()
    normal = torch.stack([torch.ones(1, 8, 8), torch.zeros(1, 8, 8)], 1).tolist()
    assert branch_loss(oracle, coarse, fine, masks, 2.0) == pytest.approx(0, abs=1e-6)
    normal = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], 1).tolist()
    assert branch_loss(oracle, coarse, fine, masks, 2.0) > 1


def test_the_branch_learns_to_find_defects_even_a_single_pixel_and_none_on_normal_images():
    coarse, fine, masks = _scene()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        branch = MaskBranch((8, 8), (4,), width=24, layers=1)
    optimiser = torch.optim.AdamW(branch.parameters(), lr=3e-3)
    for _ in range(80):
        loss = branch_loss(branch, coarse, fine, masks, 2.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    branch.eval()
    with torch.no_grad():
        found = branch.probability((coarse[0][:2], coarse[1][:2]), fine) > 0.5
        rough = branch.head(branch.coarse(coarse[0][2:], coarse[1][2:])).softmax(1)[:, 1]
    wanted = masks[:, 0] > 0.5
    assert (found & wanted).sum() / (found | wanted).sum() > 0.9
    assert found[1, 17, 9] and rough.max() < 0.5


def test_where_the_fine_features_say_nothing_the_coarse_feature_passes_through():
    branch = MaskBranch((8, 8), (4,), width=24, fuse=False)
    (refinement,) = branch.refinements
    torch.nn.init.zeros_(refinement.fine.weight)
    torch.nn.init.zeros_(refinement.fine.bias)
    feature = torch.randn((1, 24, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        refined = branch.refine(feature, [torch.ones(1, 4, 16, 16)])
    assert torch.allclose(refined, torch.nn.functional.interpolate(feature, size=(16, 16), mode="bilinear"))


def test_what_is_watched_is_what_the_middle_up_blocks_give():
    backbone = tiny_backbone()
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    text, given = backbone.encode_text([""]), []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: given.append(out)) for block in backbone.denoiser.up_blocks
    ]
    with torch.no_grad(), watch_features(backbone) as features:
        backbone.denoiser(latents, 10, text)
    for hook in hooks:
        hook.remove()
    assert len(features) == 2
    assert all(any(torch.equal(feature, out) for out in given) and feature.abs().max() > 0 for feature in features)
