"""Learned words: vectors that stand in a prompt in the place of words (textual inversion, Gal et al. 2023).

The vectors take the place of the text encoder's token embeddings; position embeddings and transformer stay as they
are, frozen. Gradients reach the vectors, and whatever made them, only.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from defect_core.backbones import Backbone
from defect_core.errors import InputError

_SLOT = re.compile(r"\{([^{}]*)\}")


class ConceptTokens(nn.Module):
    """The vectors of named concepts; these rows alone train and are saved.

    Args:
        vectors: concept name -> [k, D].
    """

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        super().__init__()
        rows = {_attribute(name): nn.Parameter(value.detach().float().clone()) for name, value in vectors.items()}
        self.names = tuple(vectors)
        self.rows = nn.ParameterDict(rows)

    @classmethod
    def from_word(cls, backbone: Backbone, counts: Mapping[str, int], word: str) -> "ConceptTokens":
        """k vectors for each concept, all begun at the embedding of `word` (the mean, if it is of several tokens).

        Args:
            counts: concept name -> k.
            word: known to the backbone's tokenizer.

        Raises:
            InputError: the word has no token.
        """
        ids = backbone.tokenizer(word, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"the word {word!r} has no token to begin learned words from; expected a word")
        table = token_embedding(backbone).weight.detach().float().cpu()
        begin = table[torch.tensor(ids)].mean(0)
        return cls({name: begin.expand(count, -1) for name, count in counts.items()})

    @property
    def vectors(self) -> dict[str, nn.Parameter]:
        """Concept name -> [k, D]."""
        return {name: self[name] for name in self.names}

    def __getitem__(self, name: str) -> nn.Parameter:
        return self.rows[_attribute(name)]


class EncodedPrompts(NamedTuple):
    """`states` [B, T, D], the text encoder's last hidden states; `spans` where each slot's tokens stand, per prompt.

    The start token is position 0.
    """

    states: Tensor
    spans: list[dict[str, slice]]

    def marks(self, *slots: str) -> Tensor:
        """bool [B, T] on the states' device, True on the tokens of these slots; every slot if none is named."""
        marked = torch.zeros(self.states.shape[:2], dtype=torch.bool, device=self.states.device)
        for row, spans in zip(marked, self.spans, strict=True):
            for name in slots or spans:
                row[spans[name]] = True
        return marked


def encode_prompts(
    backbone: Backbone, prompts: Sequence[str], vectors: Sequence[Mapping[str, Tensor]]
) -> EncodedPrompts:
    """Encode prompts whose slots, words in braces, are replaced by vectors: "a photo of a {context} with {scratch}".

    Words before a slot of k vectors keep their positions, those after it move on by k − 1; every prompt is padded or
    cut to the backbone's T tokens.

    Args:
        backbone: only its tokenizer and text encoder are used.
        prompts: B prompts; a slot stands at most once in each, and is a word of its own.
        vectors: for each prompt, slot name -> [k, D], D the width of the token embedding; any k, zero included.

    Raises:
        InputError: a slot would be cut off.
        ValueError: a slot without vectors, twice in one prompt, or vectors of another width.
    """
    table = token_embedding(backbone)
    rows, spans = [], []
    for prompt, given in zip(prompts, vectors, strict=True):
        ids, found = _tokenise(backbone, prompt, {name: len(value) for name, value in given.items()})
        rows.append(ids)
        spans.append(found)
    ids = torch.tensor(rows, device=backbone.device)

    def put_in(_module: nn.Module, _inputs: Any, words: Tensor) -> Tensor:
        made = []
        for row, found, given in zip(words, spans, vectors, strict=True):
            parts, done = [], 0
            for name, span in found.items():
                if given[name].shape[-1] != row.shape[-1]:
                    raise ValueError(
                        f"slot {name!r}: vectors of width {given[name].shape[-1]}, expected {row.shape[-1]}"
                    )
                parts += [row[done : span.start], given[name].to(row)]
                done = span.stop
            made.append(torch.cat([*parts, row[done:]]))
        return torch.stack(made)

    hook = table.register_forward_hook(put_in)
    try:
        return EncodedPrompts(backbone.text_encoder(input_ids=ids).last_hidden_state, spans)
    finally:
        hook.remove()


def token_embedding(backbone: Backbone) -> nn.Embedding:
    """The text encoder's table of words, [vocabulary, D]."""
    return backbone.text_encoder.get_input_embeddings()


def _tokenise(backbone: Backbone, prompt: str, counts: Mapping[str, int]) -> tuple[list[int], dict[str, slice]]:
    """T token ids, and where each slot stands, in the order of the prompt; ids in slots stand for nothing."""
    tokenizer, length = backbone.tokenizer, backbone.text_length
    # BERT's tokenizer, which latent diffusion has, calls them otherwise
    begin = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    ids, spans, done = [begin], {}, 0
    for slot in _SLOT.finditer(prompt):
        name = slot.group(1)
        if name not in counts or name in spans:
            raise ValueError(f"prompt {prompt!r}: slot {name!r} has no vectors or stands twice")
        ids += tokenizer(prompt[done : slot.start()], add_special_tokens=False)["input_ids"]
        spans[name] = slice(len(ids), len(ids) + counts[name])
        ids += [begin] * counts[name]
        done = slot.end()
        if len(ids) > length - 1:
            raise InputError(
                f"prompt {prompt!r}: slot {{{name}}} ends at token {len(ids)}, the text encoder reads {length} with "
                "the end token; expected a shorter prompt or fewer learned words"
            )
    ids += tokenizer(prompt[done:], add_special_tokens=False)["input_ids"]
    ids = [*ids[: length - 1], end]
    return ids + [tokenizer.pad_token_id] * (length - len(ids)), spans


def _attribute(name: str) -> str:
    """A name that torch takes for a parameter: no dot, and never that of a method (a defect may be called "double")."""
    return ":" + name.replace(":", "::").replace(".", ":;")
