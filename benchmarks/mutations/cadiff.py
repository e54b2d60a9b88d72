"""Mutations of CADiff."""

from benchmarks.mutations.mutation import Mutation

FOLDER = "defect_core/generators/cadiff/"
MODEL, LOSSES, SAMPLING, REWEIGHTING, MODULE, BRANCH, TRAINING = (
    f"{FOLDER}{name}.py"
    for name in (
        "model",
        "losses",
        "sampling",
        "attention_reweighting",
        "self_adaptive_interaction",
        "control_branch",
        "training",
    )
)
PARTS = "tests/generators/test_cadiff_parts.py::"
LEARNS = "tests/generators/test_cadiff_learns.py::"
TRAINED = "tests/generators/test_cadiff_training.py::"

MUTATIONS = (
    Mutation(
        "noise loss",
        "the inside of the mask is dropped",
        MODEL,
        "return (inside + outside) / 2",
        "return outside",
        LEARNS + "test_every_image_has_the_same_weight_whatever_the_size_of_its_defect",
    ),
    Mutation(
        "noise loss",
        "normalised by the areas of the batch",
        MODEL,
        "mean_over_samples(region * squares, region, whole_region)",
        "(region * squares).sum() / region.sum() / 4",
        LEARNS + "test_every_image_has_the_same_weight_whatever_the_size_of_its_defect",
    ),
    Mutation(
        "localizing masked loss",
        "the mask is shifted by half the map",
        LOSSES,
        "targets = token_masks(resize_mask(masks, attention.shape[-1])).to(attention)",
        "targets = token_masks(resize_mask(masks.roll(4, -1), attention.shape[-1])).to(attention)",
        PARTS + "test_localizing_masked_loss_is_zero_if_attention_equals_the_masks",
    ),
    Mutation(
        "contrastive disentanglement loss",
        "a view is a negative of itself",
        LOSSES,
        "denominators = similarity.masked_fill(~is_other_view[:, None, :, None], -torch.inf)",
        "denominators = similarity",
        PARTS + "test_contrastive_loss_equals_its_definition_on_random_vectors",
    ),
    Mutation(
        "joint loss",
        "the contrastive loss is dropped",
        MODEL,
        "+ self.config.contrast_weight * terms.contrast",
        "+ 0 * terms.contrast",
        TRAINED + "test_the_loss_is_the_weighted_sum_of_its_terms",
    ),
    Mutation(
        "self-adaptive interaction module",
        "the branch is ignored",
        MODULE,
        "return torch.cat([y, y + change], 1)",
        "return torch.cat([y, y + 0 * change], 1)",
        PARTS + "test_fuse_doubles_the_channels_and_the_merge_restores_them",
    ),
    Mutation(
        "self-adaptive interaction module",
        "the mask does not reach the branch",
        BRANCH,
        "return masks.float().expand(-1, 3, -1, -1)",
        "return 0 * masks.float().expand(-1, 3, -1, -1)",
        PARTS + "test_a_trained_branch_depends_on_the_mask_and_scale_zero_disables_it",
    ),
    Mutation(
        "masked focus attention",
        "the whole map is re-weighted",
        REWEIGHTING,
        "(inside if is_masked else torch.ones_like(inside))",
        "torch.ones_like(inside)",
        PARTS + "test_weights_are_one_outside_the_mask_and_the_strength_inside",
    ),
    Mutation(
        "delayed focus scheduler",
        "re-weighting starts at once",
        REWEIGHTING,
        "> self.threshold",
        "> -1",
        PARTS + "test_a_higher_threshold_never_starts_reweighting_earlier",
    ),
    Mutation(
        "optimiser",
        "an epoch is one step",
        TRAINING,
        "return config.epochs * math.ceil(image_count / config.batch_size)",
        "return config.epochs",
        LEARNS + "test_epochs_are_passes_over_the_defect_images",
    ),
)
