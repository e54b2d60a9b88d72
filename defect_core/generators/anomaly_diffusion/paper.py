"""Components of AnomalyDiffusion, compared with the paper and its public code."""

from defect_core.generators.paper_table import Component

_TESTS = "tests/generators/test_anomaly_diffusion"

COMPONENTS = (
    Component(
        "Spatial Anomaly Embedding",
        "sec. 3.2",
        "anomaly_diffusion.generator.AnomalyDiffusion",
        paper="null: random",
        test=f"{_TESTS}.py::test_the_slot_has_k_anomaly_tokens_then_n_spatial_tokens",
        settings=("anomaly_tokens", "spatial_tokens", "init_word"),
    ),
    Component(
        "prompts",
        "",
        "anomaly_diffusion.config.AnomalyDiffusionConfig",
        paper="not stated",
        official="about 80 templates; not included",
        test=f"{_TESTS}.py::test_a_prompt_without_its_slot_is_rejected",
        settings=("prompts",),
    ),
    Component(
        "spatial encoder E",
        "sec. 3.2",
        "anomaly_diffusion.encoder.SpatialEncoder",
        paper="ResNet-50 + FPN over four stages; the sizes of pyramid and heads are not stated",
        official="IR-50 + FPN over three stages; its last layer is equalised, ours normalised",
        test=f"{_TESTS}_paper.py::test_the_papers_encoder_is_resnet_50_with_a_feature_pyramid",
        settings=(
            "scope",
            *(f"encoder.{key}" for key in ("architecture", "norm", "side")),
            *(f"encoder.{key}" for key in ("channels", "depths", "width", "head_width")),
        ),
    ),
    Component(
        "masked diffusion loss",
        "eq. 5",
        "anomaly_diffusion.generator.AnomalyDiffusion",
        paper="the resizing of m is not stated",
        test=f"{_TESTS}.py::test_the_loss_depends_only_on_the_noise_inside_the_mask",
        settings=("mask_policy", "reduction"),
    ),
    Component(
        "training",
        "eq. 6, app. C.1",
        "anomaly_diffusion.generator.AnomalyDiffusion",
        paper="the learning rate is said to be 0.005 only",
        official="its configuration sets 1 000 000 steps; 0.005 times the batch size",
        test=f"{_TESTS}.py::test_only_tune_denoiser_changes_the_networks",
        settings=(
            "steps",
            "batch_size",
            "learning_rate",
            "encoder_learning_rate",
            "weight_decay",
            "schedule",
            "max_grad_norm",
            "tune_denoiser",
        ),
    ),
    Component(
        "data augmentation",
        "app. B",
        "views.ViewSource",
        paper="crop, translation and rotation; their ranges are not stated",
        official="rotation of 0 to 20 degrees with black corners, one crop for a batch; here mirrored, per image",
        test=f"{_TESTS}_paper.py::test_the_parts_of_the_augmentation_switch_separately",
        settings=(
            "canvas",
            "variants",
            *(
                f"augmentation.{key}"
                for key in (
                    *("crop", "shift", "rotation", "flips", "rotate90", "scale"),
                    *("brightness", "contrast", "colour", "keep", "probability"),
                )
            ),
        ),
    ),
    Component(
        "blended diffusion",
        "eq. 1",
        "anomaly_diffusion.sampling.sample_blended",
        paper="sampler and steps are not stated",
        test=f"{_TESTS}_sampling.py::test_the_denoiser_receives_the_noised_normal_latent_outside_the_mask",
        settings=("sampling_steps", "eta", "guidance_scale", "blend_result", "paste"),
    ),
    Component(
        "Adaptive Attention Re-weighting",
        "eq. 7, 8",
        "anomaly_diffusion.reweighting.adaptive_scaling_softmax",
        paper="1/d is not bounded and d has no unit; here d is relative to its mean and bounded",
        official="on logits, with the clean normal latent; off by default, on for texture defects",
        test=f"{_TESTS}_paper.py::test_the_weights_do_not_depend_on_the_contrast_of_the_defect",
        settings=("reweighting", "min_difference"),
    ),
    Component(
        "mask generation",
        "sec. 3.4, eq. 9, 10, app. C.1",
        "anomaly_diffusion.mask_model.fit_mask_tokens",
        paper="4 tokens in the text, 2 in the appendix; threshold and border rule are not stated",
        test=f"{_TESTS}_paper.py::test_each_defect_has_a_run_of_its_own_for_its_masks",
        settings=(
            "masks",
            *(
                f"mask_model.{key}"
                for key in (
                    *("tokens", "steps_per_defect", "learning_rate", "schedule", "max_grad_norm"),
                    *("sampling_steps", "guidance_scale", "threshold", "border_fraction", "position"),
                )
            ),
        ),
    ),
)
