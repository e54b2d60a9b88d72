"""Mutations of disentangled DDIM inversion."""

from benchmarks.mutations.mutation import Mutation

FOLDER = "defect_core/generators/disentangled_inversion/"
DENOISER, INVERSION, REFINEMENT, TRAINING, GENERATOR = (
    f"{FOLDER}{name}.py" for name in ("denoiser", "inversion", "refinement", "training", "generator")
)
LEARNS = "tests/generators/test_inversion_training.py::"
IDENTITIES = "tests/generators/test_inversion.py::"

MUTATIONS = (
    Mutation(
        "disentanglement loss",
        "the regularizer is dropped",
        INVERSION,
        "regularizer = (1 - mask) * (noise - background_noise) ** 2",
        "regularizer = 0 * (1 - mask) * (noise - background_noise) ** 2",
        LEARNS + "test_the_loss_of_a_step_is_eq_5_of_the_two_branches",
    ),
    Mutation(
        "disentanglement loss",
        "the matching loss is dropped",
        INVERSION,
        "matching = mask * (noise - defect_noise) ** 2",
        "matching = 0 * mask * (noise - defect_noise) ** 2",
        LEARNS + "test_both_terms_of_the_loss_fall",
    ),
    Mutation(
        "disentanglement loss",
        "the background branch sees the defect",
        TRAINING,
        "torch.cat([noised, (1 - mask) * noised])",
        "torch.cat([noised, noised])",
        LEARNS + "test_the_loss_of_a_step_is_eq_5_of_the_two_branches",
    ),
    Mutation(
        "disentanglement loss",
        "the two branches are swapped",
        TRAINING,
        "return defect_noise, background_noise",
        "return background_noise, defect_noise",
        LEARNS + "test_the_loss_of_a_step_is_eq_5_of_the_two_branches",
    ),
    Mutation(
        "masked cross-attention",
        "the region is all ones in training",
        TRAINING,
        "control.regions(prompts.background, torch.cat([mask, mask]))",
        "control.regions(prompts.background, torch.ones_like(torch.cat([mask, mask])))",
        LEARNS + "test_the_loss_of_a_step_is_eq_5_of_the_two_branches",
    ),
    Mutation(
        "masked cross-attention",
        "the background prompt is not used",
        DENOISER,
        "with self.control.regions(self.prompts.background, self.mask):\n            return self._predict",
        "with self.control.regions(self.prompts.background, self.mask * 0 + 1):\n            return self._predict",
        LEARNS + "test_each_prompt_conditions_its_region_only",
    ),
    Mutation(
        "masked cross-attention",
        "the defect prompt fills the background branch",
        DENOISER,
        "return self._predict(latents, timestep, self.prompts.hole)",
        "return self._predict(latents, timestep, self.prompts.defect)",
        LEARNS + "test_each_prompt_conditions_its_region_only",
    ),
    Mutation(
        "one model per product and defect",
        "every defect has the views of all",
        TRAINING,
        "rows = bank.defects == defects.index(defect)",
        "rows = bank.defects >= 0",
        LEARNS + "test_every_defect_has_a_unet_of_its_own_fitted_to_its_examples_only",
    ),
    Mutation(
        "one model per product and defect",
        "the U-Net of the last request stays",
        GENERATOR,
        'if self.config.models == "defect" and self._current_unet != defect:',
        'if self.config.models == "defect" and self._current_unet is None:',
        LEARNS + "test_a_sample_comes_from_the_unet_of_its_defect_in_any_batch",
    ),
    Mutation(
        "inversion of the background",
        "the defect region is inverted, too",
        INVERSION,
        "path, noises = [outside * latents], []",
        "path, noises = [latents], []",
        IDENTITIES + "test_the_inversion_is_zero_inside_the_mask",
    ),
    Mutation(
        "background of every step",
        "the defect's noise is added everywhere",
        INVERSION,
        "outside_noise + mask * defect(latents, timestep)",
        "outside_noise + defect(latents, timestep)",
        IDENTITIES + "test_the_background_does_not_depend_on_seed_and_defect_prompt",
    ),
    Mutation(
        "image without pasting",
        "the sample is always pasted",
        GENERATOR,
        "if self.config.paste:",
        "if self.config.paste or True:",
        LEARNS + "test_without_paste_the_background_is_the_decoded_sample",
    ),
    Mutation(
        "refinement of the mask",
        "the mask may leave the requested one",
        REFINEMENT,
        "mask = (soft >= ATTENTION_THRESHOLD) & allowed",
        "mask = resized >= low",
        LEARNS + "test_attention_never_refines_to_pixels_outside_the_requested_mask",
    ),
)
