"""Mutations of DefectDiffu."""

from benchmarks.mutations.mutation import Mutation

FOLDER = "defect_core/generators/defectdiffu/"
MODEL, LOSSES, GUIDANCE, TEXT, GENERATOR, CONVERSION = (
    f"{FOLDER}{name}.py" for name in ("model", "losses", "guidance", "text", "generator", "conversion")
)
TESTS = "tests/generators/test_defectdiffu_"

MUTATIONS = (
    Mutation(
        "three parts of blocks",
        "the fusion blocks have the product condition",
        MODEL,
        "parts = [0] * background + [1] * defect + [2] * fusion",
        "parts = [0] * background + [1] * defect + [0] * fusion",
        TESTS + "model.py::test_each_part_is_modulated_by_its_own_condition_only",
    ),
    Mutation(
        "cross-attention maps",
        "the softmax is over the heads",
        MODEL,
        "(logits if logit_bias is None else logits + logit_bias).softmax(-1)",
        "(logits if logit_bias is None else logits + logit_bias).softmax(-2)",
        TESTS + "model.py::test_attention_maps_sum_to_one_over_the_tokens",
    ),
    Mutation(
        "adaptive loss ratio",
        "inside and outside are swapped",
        LOSSES,
        "((1 - inside) * attention).sum(1) / ((inside * attention).sum(1) + alpha)",
        "(inside * attention).sum(1) / (((1 - inside) * attention).sum(1) + alpha)",
        TESTS + "losses.py::test_the_attention_ratio_divides_outside_by_inside",
    ),
    Mutation(
        "adaptive loss ratio",
        "R is not clamped",
        LOSSES,
        ".clamp(*RATIO_RANGE)",
        "",
        TESTS + "losses.py::test_the_adaptive_loss_ratio_is_clamped_to_2_and_8",
    ),
    Mutation(
        "double-free dropout",
        "the product is never dropped",
        TEXT,
        "NULL if product[i] < drop_product",
        "NULL if product[i] < 0",
        TESTS + "losses.py::test_conditions_are_dropped_with_the_given_probabilities",
    ),
    Mutation(
        "guidance and strength",
        "the product direction is ignored",
        GUIDANCE,
        "directions.append((self.product_scale, branches[1].noise))",
        "directions.append((0.0, branches[1].noise))",
        TESTS + "guidance.py::test_scales_of_zero_and_one_give_the_plain_predictions",
    ),
    Mutation(
        "mask prediction",
        "a mask without contrast is accepted",
        GENERATOR,
        'reject_reason = "no mask" if mask is None else "mask outside the request"',
        'reject_reason = ""',
        TESTS + "generator.py::test_a_predicted_mask_of_low_contrast_is_rejected",
    ),
    Mutation(
        "sentence vectors",
        "the projection is left out",
        TEXT,
        "vectors = self._model(input_ids=tokens.input_ids).text_embeds",
        "vectors = self._model.text_model(input_ids=tokens.input_ids).pooler_output",
        TESTS + "weights.py::test_projected_vectors_are_those_that_clip_compares_with_images",
    ),
    Mutation(
        "sentence vectors",
        "the new text layer is not neutral",
        MODEL,
        "_TEXT_INIT_STD = 0.03",
        "_TEXT_INIT_STD = 0.5",
        TESTS + "weights.py::test_the_conditions_hardly_change_a_pretrained_dit_at_first",
    ),
    Mutation(
        "three parts of blocks",
        "converted query and key are swapped",
        CONVERSION,
        'for target, third in zip("qkv", value.chunk(3), strict=True):\n                    renamed',
        'for target, third in zip("kqv", value.chunk(3), strict=True):\n                    renamed',
        TESTS + "weights.py::test_a_pickled_dit_is_converted_once",
    ),
)
