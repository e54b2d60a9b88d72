"""Learned tokens: trainable embeddings at named slots of a prompt (textual inversion, Gal et al. 2023).

The embeddings replace those of the text encoder's token table. Position embeddings and transformer stay frozen, so
gradients reach only the learned embeddings and the networks that compute them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from defect_core.backbones.load import Backbone
from defect_core.errors import InputError

_SLOT = re.compile(r"\{([^{}]*)\}")


class ConceptTokens(nn.Module):
    """Trainable token embeddings of named concepts.

    Args:
        embeddings: concept name -> initial embeddings [k, D] of its k tokens.

    Attributes:
        names: the concepts, in order.
    """

    def __init__(self, embeddings: Mapping[str, Tensor]) -> None:
        super().__init__()
        rows = {
            _parameter_name(name): nn.Parameter(value.detach().float().clone()) for name, value in embeddings.items()
        }
        self.names = tuple(embeddings)
        self.rows = nn.ParameterDict(rows)

    @classmethod
    def from_init_word(cls, backbone: Backbone, counts: Mapping[str, int], word: str) -> "ConceptTokens":
        """Return concepts whose tokens are all initialised with the embedding of one word, on the backbone's device.

        Args:
            backbone: its tokenizer and token table are used.
            counts: concept name -> number of tokens k.
            word: the mean is taken if it has several tokens.

        Raises:
            InputError: the tokenizer gives no token for the word.
        """
        ids = backbone.tokenizer(word, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"initial word {word!r} has no token in the backbone's tokenizer; expected a word")
        table = token_embedding(backbone).weight.detach().float()
        initial = table[torch.tensor(ids, device=table.device)].mean(0)
        return cls({name: initial.expand(count, -1) for name, count in counts.items()})

    @property
    def embeddings(self) -> dict[str, nn.Parameter]:
        """Concept name -> embeddings [k, D]."""
        return {name: self[name] for name in self.names}

    def __getitem__(self, name: str) -> nn.Parameter:
        return self.rows[_parameter_name(name)]


class EncodedPrompts(NamedTuple):
    """Encoded prompts with the positions of their slots.

    Attributes:
        states: the text encoder's last hidden states, [B, T, D].
        spans: for each prompt, slot name -> positions of its tokens; the start token has position 0.
    """

    states: Tensor
    spans: list[dict[str, slice]]

    def token_mask(self, *slots: str) -> Tensor:
        """Return bool [B, T] on the states' device, True on the tokens of some slots.

        Args:
            *slots: names of slots; none selects all slots.
        """
        mask = torch.zeros(self.states.shape[:2], dtype=torch.bool, device=self.states.device)
        for row, spans in zip(mask, self.spans, strict=True):
            for name in slots or spans:
                row[spans[name]] = True
        return mask


def encode_prompts(
    backbone: Backbone, prompts: Sequence[str], embeddings: Sequence[Mapping[str, Tensor]]
) -> EncodedPrompts:
    """Encode prompts in which slots, words in braces, are replaced by embeddings.

    An example of a prompt is "a photo of a {context} with {scratch}". Tokens before a slot of k embeddings keep their
    positions; those after it move by k − 1. Every prompt is padded or cut to the backbone's T tokens.

    Args:
        backbone: its tokenizer and text encoder are used.
        prompts: B prompts; each slot occurs at most once in a prompt.
        embeddings: for each prompt, slot name -> [k, D], where D is the width of the token table; k may be 0.

    Raises:
        InputError: a slot would be cut off.
        ValueError: a slot has no embeddings, occurs twice, or has embeddings of another width.
    """
    table = token_embedding(backbone)
    ids, spans = [], []
    for prompt, slots in zip(prompts, embeddings, strict=True):
        prompt_ids, prompt_spans = _tokenize(backbone, prompt, {name: len(value) for name, value in slots.items()})
        ids.append(prompt_ids)
        spans.append(prompt_spans)

    def fill_slots(_module: nn.Module, _inputs: Any, token_embeddings: Tensor) -> Tensor:
        rows = zip(token_embeddings, spans, embeddings, strict=True)
        return torch.stack([_fill_slots(row, row_spans, slots) for row, row_spans, slots in rows])

    hook = table.register_forward_hook(fill_slots)
    try:
        states = backbone.text_encoder(input_ids=torch.tensor(ids, device=backbone.device)).last_hidden_state
        return EncodedPrompts(states, spans)
    finally:
        hook.remove()


def token_embedding(backbone: Backbone) -> nn.Embedding:
    """Return the token table of the text encoder, with weights [vocabulary, D]."""
    return backbone.text_encoder.get_input_embeddings()


def _fill_slots(row: Tensor, spans: Mapping[str, slice], embeddings: Mapping[str, Tensor]) -> Tensor:
    """Return the token embeddings [T, D] of one prompt with its slots filled."""
    parts, end = [], 0
    for name, span in spans.items():
        width = embeddings[name].shape[-1]
        if width != row.shape[-1]:
            raise ValueError(f"slot {name!r}: embeddings of width {width}, expected {row.shape[-1]}")
        parts += [row[end : span.start], embeddings[name].to(row)]
        end = span.stop
    return torch.cat([*parts, row[end:]])


def _tokenize(backbone: Backbone, prompt: str, counts: Mapping[str, int]) -> tuple[list[int], dict[str, slice]]:
    """Return T token ids, and the span of each slot in the order of the prompt; ids inside slots are placeholders."""
    tokenizer, length = backbone.tokenizer, backbone.text_length
    # BERT's tokenizer (latent diffusion) names its special tokens cls and sep.
    start_id = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    end_id = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    ids, spans, position = [start_id], {}, 0
    for slot in _SLOT.finditer(prompt):
        name = slot.group(1)
        if name not in counts or name in spans:
            raise ValueError(f"prompt {prompt!r}: slot {name!r} has no embeddings or occurs twice")
        ids += tokenizer(prompt[position : slot.start()], add_special_tokens=False)["input_ids"]
        spans[name] = slice(len(ids), len(ids) + counts[name])
        ids += [start_id] * counts[name]
        position = slot.end()
        if len(ids) > length - 1:
            raise InputError(
                f"prompt {prompt!r}: slot {{{name}}} ends at token {len(ids)}, but the text encoder reads {length} "
                "tokens with the end token; expected a shorter prompt or fewer learned tokens"
            )
    ids += tokenizer(prompt[position:], add_special_tokens=False)["input_ids"]
    ids = [*ids[: length - 1], end_id]
    return ids + [tokenizer.pad_token_id] * (length - len(ids)), spans


def _parameter_name(name: str) -> str:
    """Return a valid parameter name: without dots, and never the name of a method (a defect may be "double")."""
    return ":" + name.replace(":", "::").replace(".", ":;")
