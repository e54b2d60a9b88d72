"""Mutations of SeaS."""

from benchmarks.mutations.mutation import Mutation

ALIGNMENT = "defect_core/generators/seas/alignment.py"
CONFIG = "defect_core/generators/seas/config.py"
GENERATOR = "defect_core/generators/seas/generator.py"
LOSSES = "defect_core/generators/seas/losses.py"
REFINED_MASK_PREDICTION = "defect_core/generators/seas/refined_mask_prediction.py"
SAMPLING = "defect_core/generators/seas/sampling.py"
TRAINING = "defect_core/generators/seas/training.py"
TESTS = "tests/generators/test_seas"

MUTATIONS = (
    Mutation(
        "Decoupled Anomaly Alignment loss",
        "the mask is shifted by half the map",
        ALIGNMENT,
        "(_scale_to_unit_range(anomaly) - mask) ** 2",
        "(_scale_to_unit_range(anomaly) - mask.roll(mask.shape[-1] // 2, -1)) ** 2",
        f"{TESTS}_alignment.py::test_official_form_is_zero_for_a_scaled_mask_and_a_normal_map_lowest_inside",
    ),
    Mutation(
        "Decoupled Anomaly Alignment loss",
        "the second term is dropped",
        ALIGNMENT,
        "normal_terms.append(squares.sum() /",
        "normal_terms.append(0 * squares.sum() /",
        f"{TESTS}_alignment.py::test_official_form_is_zero_for_a_scaled_mask_and_a_normal_map_lowest_inside",
    ),
    Mutation(
        "Decoupled Anomaly Alignment loss",
        "the paper's second term looks outside the mask",
        ALIGNMENT,
        "((normal * mask) ** 2)",
        "((normal * (1 - mask)) ** 2)",
        f"{TESTS}_alignment.py::test_paper_form_is_zero_if_anomaly_map_is_the_mask_and_normal_map_is_outside",
    ),
    Mutation(
        "Decoupled Anomaly Alignment loss",
        "layers of the decoder are aligned too",
        ALIGNMENT,
        'if name.startswith("down_blocks"):',
        "if name:",
        f"{TESTS}_alignment.py::test_only_layers_of_the_encoder_are_aligned",
    ),
    Mutation(
        "Decoupled Anomaly Alignment loss",
        "small defects vanish from the mask pyramid",
        ALIGNMENT,
        'resize_mask(small, side, "max")',
        'resize_mask(small, side, "nearest")',
        f"{TESTS}_alignment.py::test_a_single_latent_cell_survives_to_the_last_side_of_the_mask_pyramid",
    ),
    Mutation(
        "noise loss of defect images",
        "the defect has no weight",
        LOSSES,
        "return (mask_loss + background_loss) / 2",
        "return background_loss + 0 * mask_loss",
        f"{TESTS}_training.py::test_equal_balance_gives_a_small_defect_the_weight_of_its_background",
    ),
    Mutation(
        "Normal-image Alignment loss",
        "the loss of normal images is dropped",
        LOSSES,
        "        noise_loss(noise[count:], predicted[count:]),\n",
        "        0 * noise_loss(noise[count:], predicted[count:]),\n",
        f"{TESTS}_training.py::test_gradients_of_defect_and_normal_images_add_up_and_are_independent",
    ),
    Mutation(
        "trained parameters",
        "the tokens are not trained",
        TRAINING,
        'nn.ModuleDict({"denoiser": backbone.denoiser, "tokens": self.prompt}).requires_grad_(True)',
        'nn.ModuleDict({"denoiser": backbone.denoiser}).requires_grad_(True)',
        f"{TESTS}_training.py::test_fit_changes_tokens_and_unet_but_not_vocabulary_vae_and_text_encoder",
    ),
    Mutation(
        "training",
        "every accumulated part is the first one",
        LOSSES,
        "self.select(start, start + size) for start in",
        "self.select(0 * start, size) for start in",
        f"{TESTS}_paper.py::test_accumulated_parts_have_the_gradient_of_the_batch",
    ),
    Mutation(
        "training",
        "the steps do not grow with the number of defects",
        CONFIG,
        "return self.steps_per_defect * defects, self.steps_per_defect * defects",
        "return self.steps_per_defect, self.steps_per_defect",
        f"{TESTS}_paper.py::test_steps_per_defect_multiply_with_the_number_of_defects",
    ),
    Mutation(
        "Mask Refinement Module",
        "the image feature is ignored",
        REFINED_MASK_PREDICTION,
        "enlarged + multi_scale * self.fine(image_feature)",
        "enlarged + multi_scale",
        f"{TESTS}_masks.py::test_with_zero_image_features_the_refined_feature_is_the_enlarged_coarse_one",
    ),
    Mutation(
        "Mask Refinement Module",
        "the official form does not normalise the image feature",
        REFINED_MASK_PREDICTION,
        "        if normalise_image:\n",
        "        if False:\n",
        f"{TESTS}_paper.py::test_the_official_refinement_normalises_the_image_feature",
    ),
    Mutation(
        "focal losses of the masks",
        "normal images have no loss",
        REFINED_MASK_PREDICTION,
        "    for logits in (enlarged, branch.head(normal)):\n",
        "    for logits in ():\n",
        f"{TESTS}_masks.py::test_the_loss_is_zero_for_a_perfect_prediction_only",
    ),
    Mutation(
        "focal losses of the masks",
        "the mask is shifted by half the picture",
        REFINED_MASK_PREDICTION,
        'resize_mask(masks, logits.shape[-1], "max")[:, 0]',
        'resize_mask(masks, logits.shape[-1], "max")[:, 0].roll(logits.shape[-1] // 2, -1)',
        f"{TESTS}_masks.py::test_the_loss_is_zero_for_a_perfect_prediction_only",
    ),
    Mutation(
        "noised normal image",
        "every reference is noised as `schedule`",
        SAMPLING,
        'if config.reference == "schedule":',
        "if config.reference:",
        f"{TESTS}.py::test_each_kind_of_reference_has_its_weight",
    ),
    Mutation(
        "noised normal image",
        "the normal image is ignored",
        SAMPLING,
        "return add_noise(clean, noise, alpha_cumprod.expand(len(clean)))",
        "return add_noise(0 * clean, noise, alpha_cumprod.expand(len(clean)))",
        f"{TESTS}.py::test_each_kind_of_reference_has_its_weight",
    ),
    Mutation(
        "sampling",
        "the region of the anomaly tokens is ignored",
        SAMPLING,
        "[region.weight * prompted + (1 - region.weight) * normal[:count], normal[count:]]",
        "[prompted, normal[count:]]",
        f"{TESTS}.py::test_the_residual_is_zero_for_an_empty_region_and_largest_inside_a_region",
    ),
    Mutation(
        "final mask",
        "the mask is where the probability is low",
        GENERATOR,
        "soft > config.mask_threshold",
        "soft < config.mask_threshold",
        f"{TESTS}.py::test_a_mask_without_pixels_above_the_threshold_becomes_the_strongest_pixels",
    ),
)
