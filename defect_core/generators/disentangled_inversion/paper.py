"""The components of disentangled DDIM inversion (Cho et al.); there is no public code."""

from defect_core.generators.paper_table import Component

_TRAINING = "tests/generators/test_inversion_training.py::"
_INVERSION = "tests/generators/test_inversion.py::"

COMPONENTS = (
    Component(
        name="one model per product and defect",
        equation="sec. 4.1",
        module="disentangled_inversion.training.fit_defect_unets",
        settings=("models",),
        test=_TRAINING + "test_every_defect_has_a_unet_of_its_own_fitted_to_its_examples_only",
    ),
    Component(
        name="disentanglement loss",
        equation="eq. 5",
        module="disentangled_inversion.inversion.disentanglement_loss",
        paper="a mean instead of a sum",
        settings=("balance",),
        test=_TRAINING + "test_the_loss_of_a_step_is_eq_5_of_the_two_branches",
    ),
    Component(
        name="matching loss and regularizer are learned",
        equation="eq. 5 to 7, lemma 1",
        module="disentangled_inversion.training.make_loss",
        paper="both",
        embedded="both",
        test=_TRAINING + "test_both_terms_of_the_loss_fall",
    ),
    Component(
        name="masked cross-attention",
        equation="eq. 10, 11",
        module="disentangled_inversion.denoiser.MaskedDenoiser",
        paper="texts of the prompts not stated; ours",
        embedded="the same",
        test=_TRAINING + "test_each_prompt_conditions_its_region_only",
    ),
    Component(
        name="masked self-attention",
        equation="eq. 12",
        module="disentangled_inversion.denoiser",
        paper="follows from z_t^m = 0 in the mask, says the paper; biases and norms contradict, nothing is masked",
        embedded="the same",
        test=_INVERSION + "test_the_inversion_is_zero_inside_the_mask",
    ),
    Component(
        name="inversion of the background",
        equation="eq. 8",
        module="disentangled_inversion.inversion.invert_background",
        settings=("sampling_steps",),
        test=_INVERSION + "test_paper_mode_reconstructs_better_with_more_steps",
    ),
    Component(
        name="start from noise in the mask",
        equation="theorem 1",
        module="disentangled_inversion.inversion.sample_defect",
        settings=("start",),
        test=_INVERSION + "test_sampling_starts_from_the_inversion_plus_noise_inside_the_mask",
    ),
    Component(
        name="background of every step",
        equation="eq. 9, prop. 1",
        module="disentangled_inversion.inversion.sample_defect",
        settings=("mode",),
        test=_INVERSION + "test_the_background_does_not_depend_on_seed_and_defect_prompt",
    ),
    Component(
        name="guidance",
        equation="",
        module="disentangled_inversion.denoiser.MaskedDenoiser",
        paper="not stated",
        settings=("guidance_scale",),
        test=_TRAINING + "test_the_defect_of_the_prompt_is_inside_the_mask_and_not_outside",
    ),
    Component(
        name="image without pasting",
        equation="eq. 9",
        module="disentangled_inversion.generator.DisentangledInversion",
        settings=("canvas", "paste"),
        test=_TRAINING + "test_without_paste_the_background_is_the_decoded_sample",
    ),
    Component(
        name="refinement of the mask",
        equation="eq. 13",
        module="disentangled_inversion.refinement.refine_by_attention",
        paper="scaled to [0, 1] in the mask before the threshold 1/2, because a softmax over 77 tokens hardly reaches "
        "it; the maps of C_def exist in the pass with C_1 only, which is used",
        settings=("refinement",),
        test=_TRAINING + "test_attention_never_refines_to_pixels_outside_the_requested_mask",
    ),
    Component(
        name="layers of the refinement",
        equation="",
        module="disentangled_inversion.denoiser.MaskedDenoiser",
        paper="not named; ours",
        settings=("refinement_sides",),
        test=_TRAINING + "test_refinement_averages_the_attention_of_the_named_layers",
    ),
    Component(
        name="optimiser",
        equation="sec. 4.1",
        module="disentangled_inversion.training.fit_product",
        paper="steps stated; the constant rate is that of DreamBooth, the batch is ours, AdamW not stated",
        settings=("steps", "learning_rate", "schedule", "batch_size"),
        test=_TRAINING + "test_both_terms_of_the_loss_fall",
    ),
)
