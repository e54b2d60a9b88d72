"""Unbalanced Abnormal (UA) text prompt of SeaS (Dai et al. 2025, sec. 3.2): normal token and anomaly tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from defect_core.backbones.load import Backbone
from defect_core.data.records import GOOD
from defect_core.diffusion.tokens import ConceptTokens, EncodedPrompts, encode_prompts
from defect_core.generators.seas.config import SeasConfig


class UnbalancedAbnormalPrompt(nn.Module):
    """Learned tokens of one product: one normal token for the product and N anomaly tokens for each defect.

    Args:
        tokens: token embeddings; the normal token is named `good`, the anomaly tokens are named after their defect.
        config: settings, which hold the prompts.
    """

    def __init__(self, tokens: ConceptTokens, config: SeasConfig) -> None:
        super().__init__()
        self.tokens, self._config = tokens, config

    @classmethod
    def from_init_words(
        cls, backbone: Backbone, defects: Sequence[str], config: SeasConfig
    ) -> "UnbalancedAbnormalPrompt":
        """Return untrained tokens, initialised with the embeddings of the words in the settings."""
        normal = ConceptTokens.from_init_word(backbone, {GOOD: 1}, config.normal_init_word)
        counts = dict.fromkeys(defects, config.anomaly_tokens)
        anomalies = ConceptTokens.from_init_word(backbone, counts, config.anomaly_init_word)
        return cls(ConceptTokens({**normal.embeddings, **anomalies.embeddings}), config)

    def encode(self, backbone: Backbone, defect_sets: Sequence[Sequence[str]]) -> EncodedPrompts:
        """Encode one prompt per image: "a ⟨ob⟩ with ⟨df_1⟩ … ⟨df_N⟩", or "a ⟨ob⟩" for a normal image.

        Equal prompts are encoded once. The slots are named `product` and `defect`.

        Args:
            backbone: its tokenizer and text encoder are used.
            defect_sets: defects of each image; none for a normal image. The anomaly tokens of several defects follow
                each other in one prompt, which gives an unseen anomaly (sec. 3.2).
        """
        unique = list(dict.fromkeys(tuple(defects) for defects in defect_sets))
        prompts, vectors = [], []
        for defects in unique:
            embeddings: dict[str, Tensor] = {"product": self.tokens[GOOD]}
            if defects:
                embeddings["defect"] = torch.cat([self.tokens[name] for name in defects])
            prompts.append(self._config.defect_prompt if defects else self._config.normal_prompt)
            vectors.append(embeddings)
        encoded = encode_prompts(backbone, prompts, vectors)
        rows = [unique.index(tuple(defects)) for defects in defect_sets]
        return EncodedPrompts(encoded.states[rows], [encoded.spans[row] for row in rows])


def token_groups(prompts: EncodedPrompts) -> Tensor:
    """Return the token groups for `AttentionControl.capture`, float [B, 2, T]: anomaly tokens, normal token."""
    groups = torch.zeros(len(prompts.spans), 2, prompts.states.shape[1], device=prompts.states.device)
    for row, spans in zip(groups, prompts.spans, strict=True):
        for index, slot in enumerate(("defect", "product")):
            if slot in spans:
                row[index, spans[slot]] = 1
    return groups
