"""Mutations of AnomalyDiffusion."""

from benchmarks.mutations.mutation import Mutation

AUGMENT = "defect_core/data/augment.py"
LOSSES = "defect_core/diffusion/losses.py"
ENCODER = "defect_core/generators/anomaly_diffusion/encoder.py"
GENERATOR = "defect_core/generators/anomaly_diffusion/generator.py"
MASK_MODEL = "defect_core/generators/anomaly_diffusion/mask_model.py"
REWEIGHTING = "defect_core/generators/anomaly_diffusion/reweighting.py"
SAMPLING = "defect_core/generators/anomaly_diffusion/sampling.py"
VIEWS = "defect_core/generators/views.py"
TESTS = "tests/generators/test_anomaly_diffusion"

MUTATIONS = (
    Mutation(
        "masked diffusion loss",
        "the mask is shifted by half the picture",
        GENERATOR,
        "resize_mask(batch.masks, backbone.latent_size, config.mask_policy))",
        "resize_mask(batch.masks, backbone.latent_size, config.mask_policy).roll(4, -1))",
        f"{TESTS}.py::test_the_loss_depends_only_on_the_noise_inside_the_mask",
    ),
    Mutation(
        "masked diffusion loss",
        "the mask is ignored",
        LOSSES,
        "    squares = mask**2 * squares\n",
        "    squares = squares * torch.ones_like(mask)\n",
        f"{TESTS}.py::test_the_loss_depends_only_on_the_noise_inside_the_mask",
    ),
    Mutation(
        "Spatial Anomaly Embedding",
        "the spatial tokens are zero",
        GENERATOR,
        "torch.cat([self.tokens[key], rows])",
        "torch.cat([self.tokens[key], 0 * rows])",
        f"{TESTS}.py::test_the_slot_has_k_anomaly_tokens_then_n_spatial_tokens",
    ),
    Mutation(
        "Spatial Anomaly Embedding",
        "every image has the tokens of the first defect",
        GENERATOR,
        "[batch.defects[int(row)] for row in rows],",
        "[self.tokens.names[0] for _ in rows],",
        f"{TESTS}.py::test_only_the_tokens_of_the_batch_and_the_encoder_get_gradients",
    ),
    Mutation(
        "spatial encoder E",
        "the pyramid keeps its finest map only",
        ENCODER,
        "fused = part if fused is None else part + F.interpolate(",
        "fused = part if fused is None else part + 0 * F.interpolate(",
        f"{TESTS}_paper.py::test_each_stage_of_the_pyramid_counts_and_the_batch_does_not",
    ),
    Mutation(
        "spatial encoder E",
        "`resnet50` builds the encoder of the public code",
        ENCODER,
        '_resnet50 if config.architecture == "resnet50" else _ir_stages',
        "_ir_stages",
        f"{TESTS}_paper.py::test_the_papers_encoder_is_resnet_50_with_a_feature_pyramid",
    ),
    Mutation(
        "training",
        "the U-Net is trained although it is frozen",
        GENERATOR,
        '        if config.tune_denoiser:\n            trained["denoiser"]',
        '        if True:\n            trained["denoiser"]',
        f"{TESTS}.py::test_only_tune_denoiser_changes_the_networks",
    ),
    Mutation(
        "data augmentation",
        "the crop is never applied",
        AUGMENT,
        "    if options.crop:\n",
        "    if False:\n",
        f"{TESTS}_paper.py::test_the_parts_of_the_augmentation_switch_separately",
    ),
    Mutation(
        "data augmentation",
        "the mask is not cropped with the image",
        AUGMENT,
        "Image.Resampling.NEAREST, box)",
        "Image.Resampling.NEAREST)",
        f"{TESTS}_paper.py::test_a_random_crop_contains_the_whole_defect",
    ),
    Mutation(
        "data augmentation",
        "the settings are ignored",
        VIEWS,
        "*size, rng, config.augmentation)",
        "*size, rng, None)",
        f"{TESTS}_paper.py::test_the_parts_of_the_augmentation_switch_separately",
    ),
    Mutation(
        "blended diffusion",
        "the normal latent is not blended in",
        SAMPLING,
        "        before_step=steps.blend_with_normal,\n",
        "",
        f"{TESTS}_sampling.py::test_the_denoiser_receives_the_noised_normal_latent_outside_the_mask",
    ),
    Mutation(
        "blended diffusion",
        "the normal latent has the noise of another step",
        SAMPLING,
        "self.trajectory.alphas_cumprod[level].expand(len(latents))",
        "self.trajectory.alphas_cumprod[level - 1].expand(len(latents))",
        f"{TESTS}_sampling.py::test_the_denoiser_receives_the_noised_normal_latent_outside_the_mask",
    ),
    Mutation(
        "blended diffusion",
        "the defect is pasted although `paste` is false",
        GENERATOR,
        "            if config.paste:\n",
        "            if True:\n",
        f"{TESTS}_paper.py::test_without_paste_the_decoded_image_is_returned",
    ),
    Mutation(
        "Adaptive Attention Re-weighting",
        "d is not relative to its mean",
        REWEIGHTING,
        "(difference / mean.clamp(min=_MIN_MEAN_DIFFERENCE)).clamp",
        "(difference / 1).clamp",
        f"{TESTS}_paper.py::test_the_weights_do_not_depend_on_the_contrast_of_the_defect",
    ),
    Mutation(
        "Adaptive Attention Re-weighting",
        "a larger difference gets a larger weight",
        REWEIGHTING,
        "torch.where(inside, 1 / difference,",
        "torch.where(inside, difference,",
        f"{TESTS}_sampling.py::test_a_smaller_difference_gets_a_larger_weight",
    ),
    Mutation(
        "Adaptive Attention Re-weighting",
        "the official form compares with a noisy normal latent",
        SAMPLING,
        "latent_weights(latents, self.normal.latents, self.latent_masks)",
        "latent_weights(latents, self.normal.latents + latents.flip(-1), self.latent_masks)",
        f"{TESTS}_paper.py::test_the_official_weights_compare_the_noisy_latent_with_the_clean_normal_one",
    ),
    Mutation(
        "Adaptive Attention Re-weighting",
        "the official form does not dilate the mask",
        SAMPLING,
        "self.latent_masks = dilate_latent_mask(self.latent_masks, radius)",
        "self.latent_masks = dilate_latent_mask(self.latent_masks, 0 * radius)",
        f"{TESTS}_sampling.py::test_the_denoiser_receives_the_noised_normal_latent_outside_the_mask",
    ),
    Mutation(
        "Adaptive Attention Re-weighting",
        "the weights are never applied",
        SAMPLING,
        "        if self.reweighting is None:\n",
        "        if True:\n",
        f"{TESTS}_sampling.py::test_weights_of_1_equal_sampling_without_reweighting",
    ),
    Mutation(
        "mask generation",
        "a sampled mask is moved although its position is kept",
        MASK_MODEL,
        "(window.top, window.left) if keep_position else",
        "(window.top, window.left) if not keep_position else",
        f"{TESTS}_paper.py::test_a_sampled_mask_stays_where_it_was_sampled",
    ),
    Mutation(
        "mask generation",
        "a mask along the border is accepted",
        MASK_MODEL,
        "return bool(mask.any()) and not touches_border_too_much(mask, border_fraction)",
        "return bool(mask.any())",
        f"{TESTS}_sampling.py::test_a_mask_along_the_border_is_invalid",
    ),
    Mutation(
        "mask generation",
        "all defects are trained in one run",
        MASK_MODEL,
        "tokens.names if config.steps_per_defect is not None else (None,)",
        "(None,)",
        f"{TESTS}_paper.py::test_each_defect_has_a_run_of_its_own_for_its_masks",
    ),
)
