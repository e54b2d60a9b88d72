"""Consistency conditions: prompts of product and defect names, text encoders (section 3.2), dropout (section 3.3)."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from defect_core.data.records import GOOD
from defect_core.errors import InputError
from defect_core.generators.defectdiffu.conversion import read_open_clip_text
from defect_core.generators.views import prompt_words

NULL = ""  # the null condition ∅ of the paper
TEMPLATE = "a photo of {}"
HASHED_WIDTH = 128
# These words are in many prompts, so they would make different prompts similar.
_STOP_WORDS = {"a", "an", "the", "of", "on", "in", "with", "photo", "image", "close", "up"}

ConditionNames = tuple[str, str]
"""A product name and a defect name. `NULL` leaves the product out; "good" is the defect name c_g of normal images."""


class Conditions(NamedTuple):
    """Text embeddings of the three parts of the transformer, each [B, W].

    Attributes:
        product: consistency condition c_p of the background part.
        defect: consistency condition c_d of the defect part.
        fusion: fusion condition c_f of the fusion part.
    """

    product: Tensor
    defect: Tensor
    fusion: Tensor

    def to(self, like: Tensor) -> "Conditions":
        """Return the conditions on the device and in the number type of `like`."""
        return Conditions(*(embedding.to(like.device, like.dtype) for embedding in self))


class TextEncoder(Protocol):
    """Encodes prompts to one vector each.

    Attributes:
        width: W, the length of a vector.
        name: name of the encoder.
    """

    width: int
    name: str

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings of `prompts`, [B, W]."""
        ...


class HashedTextEncoder:
    """Text encoder without weights: a prompt is the normalised sum of one random direction per word.

    The hash of a word gives its direction, so a word has the same direction on every machine and for every product.
    Stop words have no direction. The embedding of a prompt without other words is zero.

    Args:
        width: W, the length of an embedding.
    """

    name = "hashed"

    def __init__(self, width: int = HASHED_WIDTH) -> None:
        self.width = width

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings of `prompts`, [B, W], of norm 1 or 0."""
        return torch.stack([self._encode(prompt) for prompt in prompts])

    def _encode(self, prompt: str) -> Tensor:
        words = [word for word in re.findall(r"\w+", prompt_words(prompt).lower()) if word not in _STOP_WORDS]
        total = torch.zeros(self.width)
        for word in words:
            total = total + self._direction(word)
        return total / total.norm().clamp(min=1e-8) if words else total

    def _direction(self, word: str) -> Tensor:
        """Return a unit vector whose signs are bits of the word's hash.

        No library's random numbers are used, because the embedded weights need the same directions in every version.
        """
        bits = np.unpackbits(np.frombuffer(hashlib.shake_256(word.encode()).digest(-(-self.width // 8)), np.uint8))
        return torch.from_numpy(2.0 * bits[: self.width] - 1).float() / self.width**0.5


class ClipTextEncoder:
    """CLIP's text encoder; the embedding is one vector per prompt, normalised to 1.

    Args:
        folder: `text_encoder/` and `tokenizer/` as in a Stable Diffusion folder; a CLIP model of transformers with its
            tokenizer; or an open_clip folder, such as that of CLIP RN50.
        vector: `projected` is the vector that CLIP compares with images (`CLIPTextModelWithProjection`), `pooled` that
            before the projection.

    Raises:
        InputError: a part is missing or cannot be read, or the folder has no projection.
    """

    name = "clip"

    def __init__(self, folder: Path, vector: Literal["pooled", "projected"] = "pooled") -> None:
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        is_open_clip = (folder / "open_clip_config.json").is_file()
        is_nested = not is_open_clip and not (folder / "config.json").is_file()
        model_folder, tokenizer_folder = (
            (folder / "text_encoder", folder / "tokenizer") if is_nested else (folder, folder)
        )
        required = [] if is_open_clip else [model_folder / "config.json"]
        required.append(tokenizer_folder / "tokenizer_config.json")
        for path in required:
            if not path.is_file():
                raise InputError(
                    f"text: {folder}: {path.relative_to(folder)} is missing; expected text_encoder/ and tokenizer/"
                )
        self.vector = vector
        try:
            self._model = _load_open_clip(folder) if is_open_clip else _load_clip(model_folder, vector)
            self._tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
        except Exception as error:  # transformers raises errors of many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"text: {folder}: cannot be loaded ({reason}); expected CLIP's text encoder") from error
        config = self._model.config
        self.width = int(config.projection_dim if vector == "projected" else config.hidden_size)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings of `prompts`, [B, W], of norm 1."""
        length = min(self._tokenizer.model_max_length, self._model.config.max_position_embeddings)
        tokens = self._tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            if self.vector == "projected":
                vectors = self._model(input_ids=tokens.input_ids).text_embeds
            else:
                text_model = getattr(self._model, "text_model", self._model)
                vectors = text_model(input_ids=tokens.input_ids).pooler_output
        return vectors / vectors.norm(dim=-1, keepdim=True)


def consistency_prompts(product: str, defect: str) -> tuple[str, str, str]:
    """Return the prompts of the background, the defect and the fusion part.

    Args:
        product: name of the product, or `NULL`.
        defect: name of the defect; "good" for a normal image.

    >>> consistency_prompts("metal_nut", "scratch")
    ('a photo of metal nut', 'a photo of scratch', 'a photo of scratch metal nut')
    >>> consistency_prompts("", "good")
    ('', 'a photo of good', 'a photo of good')
    """
    fusion = " ".join(prompt_words(name) for name in (defect, product) if name)
    background, foreground, both = (
        TEMPLATE.format(prompt_words(text)) if text else "" for text in (product, defect, fusion)
    )
    return background, foreground, both


def encode_conditions(encoder: TextEncoder, names: Sequence[ConditionNames]) -> Conditions:
    """Return the text embeddings of products and defects, [B, W] for each part. Equal prompts are encoded once."""
    prompts = [consistency_prompts(product, defect) for product, defect in names]
    unique = sorted({prompt for three in prompts for prompt in three})
    embeddings = dict(zip(unique, encoder(unique), strict=True))
    return Conditions(*(torch.stack([embeddings[three[part]] for three in prompts]) for part in range(3)))


def drop_conditions(
    names: Sequence[ConditionNames], drop_product: float, drop_defect: float, generator: torch.Generator
) -> list[ConditionNames]:
    """Return the names after the dropout of the double-free strategy (algorithm 1).

    Product and defect are dropped independently, so all branches of eq. 4 are trained. Algorithm 1 tries twice to drop
    the product of a defect image. The public code never drops it, so it does not train the branch (c_d, ∅).

    Args:
        names: product and defect names of a batch.
        drop_product: p_1, probability that a product becomes `NULL`.
        drop_defect: p_2, probability that a defect becomes "good".
        generator: source of randomness; 2 · B numbers are used.
    """
    product, defect = torch.rand((2, len(names)), generator=generator).tolist()
    return [
        (NULL if product[i] < drop_product else name[0], GOOD if defect[i] < drop_defect else name[1])
        for i, name in enumerate(names)
    ]


def _load_clip(folder: Path, vector: str) -> Any:
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    if vector == "pooled":
        return CLIPTextModel.from_pretrained(folder, use_safetensors=True).float().eval()
    loaded: Any = CLIPTextModelWithProjection.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"no weight named {min(info['missing_keys'])}, which text_vector: projected needs")
    return model.float().eval()


def _load_open_clip(folder: Path) -> Any:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

    config, weights = read_open_clip_text(folder)
    model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    missing, _ = model.load_state_dict(weights, strict=False)
    if missing:
        raise ValueError(f"no weight named {min(missing)}")
    return model.eval()
