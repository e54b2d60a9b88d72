"""Sentences to condition vectors: a stand-in without weights, in which a word always means the same, or CLIP's.

Each of the three parts of the transformer reads its own sentence (paper, section 3.2): the background part
"a photo of {product}", the defect part "a photo of {defect}", the fusion part "a photo of {defect} {product}".
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from defect_core.errors import InputError
from defect_core.generators.views import prompt_words

GOOD = "good"
EMPTY = ""
TEMPLATE = "a photo of {}"
HASHED_WIDTH = 128
_SILENT = {"a", "an", "the", "of", "on", "in", "with", "photo", "image", "close", "up"}


class Conditions(NamedTuple):
    """Text vectors [B, W] of the background, the defect and the fusion part."""

    product: Tensor
    defect: Tensor
    fusion: Tensor

    def to(self, like: Tensor) -> "Conditions":
        return Conditions(*(part.to(like.device, like.dtype) for part in self))


class SentenceEncoder(Protocol):
    """`width` is W; `name` says in a saved generator which encoder it was."""

    width: int
    name: str

    def __call__(self, sentences: Sequence[str]) -> Tensor: ...


class HashedWords:
    """Every word has a fixed random direction; a sentence is the normalised sum of its words' directions.

    The direction is decided by a hash of the word alone, so any word works and means the same on every machine. Words
    that stand in every prompt (articles, "photo") are silent, for they would make all sentences alike; a sentence of
    silent words, and the empty one, is the zero vector.
    """

    name = "hashed"

    def __init__(self, width: int = HASHED_WIDTH) -> None:
        self.width = width

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        return torch.stack([self._encode(sentence) for sentence in sentences])

    def _encode(self, sentence: str) -> Tensor:
        heard = [word for word in re.findall(r"\w+", prompt_words(sentence).lower()) if word not in _SILENT]
        total = torch.zeros(self.width)
        for word in heard:
            total = total + self._direction(word)
        return total / total.norm().clamp(min=1e-8) if heard else total

    def _direction(self, word: str) -> Tensor:
        """Signs from the bits of the word's hash: no library's random numbers, so the same for ever."""
        bits = np.unpackbits(np.frombuffer(hashlib.shake_256(word.encode()).digest(-(-self.width // 8)), np.uint8))
        return torch.from_numpy(2.0 * bits[: self.width] - 1).float() / self.width**0.5


class ClipSentences:
    """The normalised pooled sentence vector of CLIP's text encoder (paper: CLIP; its code: the RN50 variant).

    Args:
        folder: holds `text_encoder/` and `tokenizer/`, as a Stable Diffusion folder does.

    Raises:
        InputError: a part is missing or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from transformers.models.clip.modeling_clip import CLIPTextModel
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        for part in ("text_encoder/config.json", "tokenizer/tokenizer_config.json"):
            if not (folder / part).is_file():
                raise InputError(f"text: {folder}: {part} is missing; expected text_encoder/ and tokenizer/")
        try:
            self._model = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True).float().eval()
            self._tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"text: {folder}: cannot be loaded ({reason}); expected CLIP's text encoder") from error
        self.name = "clip"
        self.width = int(self._model.config.hidden_size)

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        length = min(self._tokenizer.model_max_length, self._model.config.max_position_embeddings)
        tokens = self._tokenizer(
            list(sentences), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            pooled = self._model(input_ids=tokens.input_ids).pooler_output
        return pooled / pooled.norm(dim=-1, keepdim=True)


def sentences(product: str, defect: str) -> tuple[str, str, str]:
    """The three sentences for a pair of words; `EMPTY` stands for a condition that is left out.

    >>> sentences("metal_nut", "scratch")
    ('a photo of metal nut', 'a photo of scratch', 'a photo of scratch metal nut')
    >>> sentences("", "good")
    ('', 'a photo of good', 'a photo of good')
    """
    both = " ".join(prompt_words(word) for word in (defect, product) if word)
    return tuple(TEMPLATE.format(prompt_words(text)) if text else "" for text in (product, defect, both))


def encode_pairs(encoder: SentenceEncoder, pairs: Sequence[tuple[str, str]]) -> Conditions:
    """Condition vectors of (product, defect) pairs; equal sentences are encoded once."""
    wanted = [sentences(product, defect) for product, defect in pairs]
    unique = sorted({text for three in wanted for text in three})
    vectors = dict(zip(unique, encoder(unique), strict=True))
    return Conditions(*(torch.stack([vectors[three[part]] for three in wanted]) for part in range(3)))
