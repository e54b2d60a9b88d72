"""The components of DefectDiffu (ECCV 2024) in the paper and in its public code."""

from defect_core.generators.paper_table import Component

_MODEL = "tests/generators/test_defectdiffu_model.py::"
_LOSSES = "tests/generators/test_defectdiffu_losses.py::"
_GUIDANCE = "tests/generators/test_defectdiffu_guidance.py::"
_GENERATOR = "tests/generators/test_defectdiffu_generator.py::"
_WEIGHTS = "tests/generators/test_defectdiffu_weights.py::"

COMPONENTS = (
    Component(
        name="three parts of blocks",
        equation="sec. 3.2, 4.1",
        module="defectdiffu.model.DefectDiT",
        settings=("dit", "split"),
        test=_MODEL + "test_each_part_is_modulated_by_its_own_condition_only",
    ),
    Component(
        name="sentence vectors",
        equation="sec. 3.2",
        module="defectdiffu.text.ClipTextEncoder",
        paper="which CLIP is not stated",
        settings=("text", "text_vector"),
        test=_WEIGHTS + "test_projected_vectors_are_those_that_clip_compares_with_images",
    ),
    Component(
        name="double-free dropout",
        equation="algorithm 1",
        module="defectdiffu.text.drop_conditions",
        paper="product and defect independently, so that eq. 4 has trained branches; algorithm 1 is ambiguous",
        settings=("drop_product", "drop_defect"),
        test=_LOSSES + "test_conditions_are_dropped_with_the_given_probabilities",
    ),
    Component(
        name="guidance and strength",
        equation="eq. 4",
        module="defectdiffu.guidance.DoubleFreeGuidance",
        paper="strengths of the tables not stated; those of the code",
        official="of three of four channels; all four here",
        settings=("guidance", "product_scale", "strength_range"),
        test=_GUIDANCE + "test_scales_of_zero_and_one_give_the_plain_predictions",
    ),
    Component(
        name="cross-attention maps",
        equation="eq. 5",
        module="defectdiffu.model.DefectCrossAttention",
        paper="softmax over the image tokens, as in the code; the output starts at zero (ours)",
        official="without the zero start",
        test=_MODEL + "test_attention_maps_sum_to_one_over_the_tokens",
    ),
    Component(
        name="mask prediction",
        equation="eq. 6, sec. 3.4",
        module="defectdiffu.model.MaskGenerationModule",
        settings=("mask_weight", "mask_average_fraction", "mask_dilation", "mask_contrast"),
        test=_GENERATOR + "test_a_predicted_mask_of_low_contrast_is_rejected",
    ),
    Component(
        name="adaptive loss ratio",
        equation="eq. 7 to 9",
        module="defectdiffu.losses.adaptive_loss_ratio",
        settings=("alpha", "detach_ratio"),
        test=_LOSSES + "test_the_adaptive_loss_ratio_is_clamped_to_2_and_8",
    ),
    Component(
        name="loss",
        equation="eq. 10, 11",
        module="defectdiffu.losses.training_loss",
        paper="with the variational bound of the code; means instead of sums",
        settings=("weight_cap", "variance_weight"),
        test=_LOSSES + "test_the_weight_of_the_noise_loss_is_capped",
    ),
    Component(
        name="image from noise",
        equation="sec. 3.3",
        module="defectdiffu.guidance.sample_latents",
        settings=("canvas", "start", "paste", "residual", "region_fraction", "sampling_steps"),
        test=_GENERATOR + "test_only_start_normal_depends_on_the_normal_image",
    ),
    Component(
        name="optimiser",
        equation="",
        module="defectdiffu.generator.training_steps",
        paper="not stated; the values of the code, with shuffled batches",
        official="without shuffling",
        settings=("epochs", "batch_size", "learning_rate", "added_learning_rate", "schedule", "max_grad_norm"),
        test=_GENERATOR + "test_only_noise_levels_of_the_sampler_are_trained",
    ),
)
