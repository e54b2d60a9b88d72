"""The components of CADiff (Tong et al. 2026); there is no public code."""

from defect_core.generators.paper_table import Component

_PARTS = "tests/generators/test_cadiff_parts.py::"
_TRAINING = "tests/generators/test_cadiff_training.py::"
_LEARNS = "tests/generators/test_cadiff_learns.py::"
_SAMPLING = "tests/generators/test_cadiff.py::"

COMPONENTS = (
    Component(
        name="tokens",
        equation="eq. 4",
        module="cadiff.model.CADiffModel",
        paper="prompts not stated; ours",
        settings=("init_word", "token_learning_rate"),
        test=_TRAINING + "test_all_tokens_are_initialised_with_the_word_anomaly",
    ),
    Component(
        name="frozen U-Net",
        equation="eq. 4",
        module="cadiff.training.train_model",
        paper="stated both ways; tokens and branch are trained",
        settings=("tune_denoiser",),
        test=_TRAINING + "test_fit_changes_only_the_tokens_and_the_control_branch",
    ),
    Component(
        name="noise loss",
        equation="eq. 4",
        module="cadiff.model.CADiffModel.loss_terms",
        paper="without normal images",
        settings=("balance", "normal_fraction"),
        test=_LEARNS + "test_every_image_has_the_same_weight_whatever_the_size_of_its_defect",
    ),
    Component(
        name="localizing masked loss",
        equation="eq. 5",
        module="cadiff.losses.localizing_masked_loss",
        paper="a mean instead of a sum over positions; attention of one timestep instead of all",
        settings=("localising", "localising_weight", "loss_sides"),
        test=_PARTS + "test_opposite_errors_cancel_only_in_the_paper_form",
    ),
    Component(
        name="contrastive disentanglement loss",
        equation="eq. 6, 7",
        module="cadiff.losses.contrastive_disentanglement_loss",
        paper="temperature not stated; of outputs of the text encoder, because the tokens are equal in all images",
        settings=("contrast_weight", "contrast_views", "temperature"),
        test=_PARTS + "test_contrastive_loss_equals_its_definition_on_random_vectors",
    ),
    Component(
        name="joint loss",
        equation="eq. 8",
        module="cadiff.model.CADiffModel.loss",
        test=_TRAINING + "test_the_loss_is_the_weighted_sum_of_its_terms",
    ),
    Component(
        name="self-adaptive interaction module",
        equation="eq. 9, 10",
        module="cadiff.self_adaptive_interaction.SelfAdaptiveInteractionModule",
        paper="how 2C channels become C is not stated; a convolution",
        settings=("self_adaptive_interaction",),
        test=_PARTS + "test_fuse_doubles_the_channels_and_the_merge_restores_them",
    ),
    Component(
        name="masked focus attention",
        equation="eq. 11",
        module="cadiff.attention_reweighting.masked_focus_weights",
        paper="w inside the mask; the printed factor would be the number of its pixels",
        settings=("masked_focus", "strength_range", "intensity"),
        test=_PARTS + "test_weights_are_one_outside_the_mask_and_the_strength_inside",
    ),
    Component(
        name="delayed focus scheduler",
        equation="eq. 11",
        module="cadiff.attention_reweighting.DelayedFocusScheduler",
        paper="the attention of a step decides about the next",
        settings=("focus_threshold", "focus_side", "focus_latched"),
        test=_PARTS + "test_a_latched_scheduler_stays_active_and_another_decides_every_step",
    ),
    Component(
        name="sampling",
        equation="sec. Implementation Details",
        module="cadiff.sampling.sample_canvases",
        paper="guidance not stated; that of Stable Diffusion",
        settings=("canvas", "start", "paste", "sampling_steps", "guidance_scale"),
        test=_SAMPLING + "test_only_paste_keeps_every_pixel_outside_the_mask",
    ),
    Component(
        name="optimiser",
        equation="sec. Implementation Details",
        module="cadiff.training.training_steps",
        paper="no clipping, as in ControlNet; its empty prompts in half of the images are not implemented",
        settings=("epochs", "batch_size", "learning_rate", "schedule", "max_grad_norm"),
        test=_LEARNS + "test_epochs_are_passes_over_the_defect_images",
    ),
)
