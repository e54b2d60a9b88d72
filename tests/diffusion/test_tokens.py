"""Learned tokens in prompts: their positions, the other tokens, and their gradients."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from defect_core.backbones import load_backbone
from defect_core.diffusion.tokens import ConceptTokens, encode_prompts, token_embedding
from defect_core.errors import InputError


@pytest.fixture(scope="module")
def embedded():
    return load_backbone("embedded")


@pytest.fixture(scope="module", params=["embedded", "77 tokens"])
def backbone(request, embedded):
    """The embedded backbone with 32 tokens, and a text encoder with the 77 tokens of Stable Diffusion."""
    if request.param == "embedded":
        return embedded
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=len(embedded.tokenizer),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
        )
        encoder = CLIPTextModel(config).eval().requires_grad_(False)
    return SimpleNamespace(
        tokenizer=embedded.tokenizer, text_encoder=encoder, text_length=77, device=torch.device("cpu")
    )


def _width(backbone):
    return token_embedding(backbone).embedding_dim


def _transformer_input(backbone, call):
    """Return the input [B, T, D] of the text encoder's transformer and the result of the call."""
    inputs = []
    layers = backbone.text_encoder.get_submodule(
        "encoder" if hasattr(backbone.text_encoder, "encoder") else "text_model"
    )
    hook = layers.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    result = call()
    hook.remove()
    return inputs[0], result


def _plain_ids(backbone, prompt):
    return backbone.tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_tokens_after_a_slot_move_by_k_minus_1(backbone):
    k = 5
    vectors = torch.randn(k, _width(backbone), generator=torch.Generator().manual_seed(0))
    before, after = _plain_ids(backbone, "a photo of a"), _plain_ids(backbone, "on a screw")
    hidden, (states, spans) = _transformer_input(
        backbone, lambda: encode_prompts(backbone, ["a photo of a {x} on a screw"], [{"x": vectors}])
    )
    table = token_embedding(backbone).weight
    positions = backbone.text_encoder.get_submodule("embeddings").position_embedding.weight
    tokens = hidden[0] - positions[: backbone.text_length]
    p = 1 + len(before)
    assert spans == [{"x": slice(p, p + k)}]
    assert states.shape == (1, backbone.text_length, _width(backbone))
    assert torch.allclose(tokens[1:p], table[torch.tensor(before)], atol=1e-6)
    assert torch.allclose(tokens[p : p + k], vectors, atol=1e-6)
    # With one token in the slot, the next token would be at p + 1; it is k − 1 positions later.
    assert torch.allclose(tokens[p + 1 + k - 1 : p + k + len(after)], table[torch.tensor(after)], atol=1e-6)
    assert torch.allclose(tokens[p + k + len(after)], table[backbone.tokenizer.eos_token_id], atol=1e-6)


def test_slot_with_the_embedding_of_a_word_equals_the_plain_prompt(embedded):
    prompt = "a photo of a scratch on a screw"
    plain = embedded.encode_text([prompt])
    assert torch.equal(encode_prompts(embedded, [prompt], [{}]).states, plain)
    row = token_embedding(embedded).weight[torch.tensor(_plain_ids(embedded, "scratch"))]
    with_slot = encode_prompts(embedded, ["a photo of a {x} on a screw"], [{"x": row}]).states
    assert torch.allclose(with_slot, plain, atol=1e-6)


def test_slots_of_any_length_have_their_spans(embedded):
    width = _width(embedded)
    vectors = {"one": torch.ones(2, width), "two": torch.zeros(3, width), "none": torch.zeros(0, width)}
    prompts = ["a {two} with {one} {none}", "{one}"]
    encoded = encode_prompts(embedded, prompts, [vectors, vectors])
    first = 1 + len(_plain_ids(embedded, "a"))
    assert encoded.spans[0]["two"] == slice(first, first + 3)
    second = first + 3 + len(_plain_ids(embedded, "with"))
    assert encoded.spans[0]["one"] == slice(second, second + 2)
    assert encoded.spans[0]["none"] == slice(second + 2, second + 2)
    assert encoded.spans[1] == {"one": slice(1, 3)}
    assert encoded.token_mask("one").nonzero().tolist() == [[0, second], [0, second + 1], [1, 1], [1, 2]]
    assert int(encoded.token_mask().sum()) == 7


def test_gradients_reach_only_the_learned_embeddings(backbone):
    tokens = ConceptTokens({"x": torch.randn(3, _width(backbone)), "y": torch.randn(2, _width(backbone))})
    encode_prompts(backbone, ["a {x}"], [tokens.embeddings]).states.square().sum().backward()
    assert tokens["x"].grad.abs().sum() > 0
    assert tokens["y"].grad is None
    assert all(parameter.grad is None for parameter in backbone.text_encoder.parameters())


def test_text_encoder_keeps_no_hook(backbone):
    vectors = [{"x": torch.randn(3, _width(backbone))}]
    encode_prompts(backbone, ["a {x}"], vectors)
    with pytest.raises(ValueError, match="width 7"):
        encode_prompts(backbone, ["a {x}"], [{"x": torch.zeros(1, 7)}])
    assert not token_embedding(backbone)._forward_hooks


def test_concepts_are_initialised_with_the_embedding_of_the_word(embedded):
    tokens = ConceptTokens.from_init_word(embedded, {"a/b.c": 3, "double": 2, "keys": 1}, "scratch")
    row = token_embedding(embedded).weight[torch.tensor(_plain_ids(embedded, "scratch"))].mean(0)
    assert {name: tuple(rows.shape) for name, rows in tokens.embeddings.items()} == {
        "a/b.c": (3, row.numel()),
        "double": (2, row.numel()),
        "keys": (1, row.numel()),
    }
    assert all(torch.allclose(rows, row.expand_as(rows)) for rows in tokens.embeddings.values())
    assert len(list(tokens.parameters())) == 3


@pytest.mark.parametrize("k", [31, 40])
def test_slot_that_would_be_cut_off_is_rejected(embedded, k):
    with pytest.raises(InputError, match=r"slot \{x\} ends at token .* reads 32"):
        encode_prompts(embedded, ["{x}"], [{"x": torch.zeros(k, _width(embedded))}])


def test_slot_that_exactly_fits_is_accepted(embedded):
    encoded = encode_prompts(embedded, ["{x} " + "screw " * 40], [{"x": torch.zeros(30, _width(embedded))}])
    assert encoded.spans == [{"x": slice(1, 31)}]
    assert encoded.states.shape[1] == 32


def test_slot_without_embeddings_is_an_error(embedded):
    with pytest.raises(ValueError, match="slot 'y' has no embeddings"):
        encode_prompts(embedded, ["a {y}"], [{"x": torch.zeros(1, 128)}])
