"""AnomalyDiffusion as a generator: words are learned for how a defect looks and where it is, the network stays frozen.

Formulas stand in `reweighting.py` and `drawing.py`; this file turns real examples into training views and requests
into pairs.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from defect_core.backbones import Backbone
from defect_core.diffusion.attention import check_text_width, control_attention
from defect_core.diffusion.losses import noise_loss, resize_mask
from defect_core.diffusion.samplers import NoiseStream
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.diffusion.tokens import ConceptTokens, EncodedPrompts, encode_prompts, token_embedding
from defect_core.errors import InputError
from defect_core.generators.anomaly_diffusion.config import CAPABILITIES, AnomalyDiffusionConfig
from defect_core.generators.anomaly_diffusion.encoder import SpatialEncoder
from defect_core.generators.anomaly_diffusion.mask_model import draw_masks, fit_masks, mask_images, move_mask
from defect_core.generators.anomaly_diffusion.sampling import Reweighting, Scene, draw
from defect_core.generators.base import CheckedRequest, Example, Mask, SampleRequest, SyntheticPair, check_request
from defect_core.generators.canvas import choose_window, crop_image, crop_mask, resize_to_window
from defect_core.generators.composite import composite
from defect_core.generators.trained import (
    SavedGenerator,
    TrainedGenerator,
    check_on_product,
    load_frozen,
    round_to_half,
)
from defect_core.generators.views import (
    View,
    augmented_views,
    encode_views,
    latent_masks,
    to_denoiser,
    to_pixels,
    to_tensor,
)
from defect_core.seeds import derive_seed
from defect_core.training.loop import bf16_autocast, bf16_inference, train

_SLOT = "anomaly"
_TRIES = 4


class AnomalyDiffusion(TrainedGenerator[AnomalyDiffusionConfig]):
    """Anomaly tokens for each defect of each product, one spatial encoder for all; the U-Net is tuned only if asked."""

    name = "anomaly-diffusion"
    capabilities = CAPABILITIES
    config_class = AnomalyDiffusionConfig

    def __init__(
        self, backbone: Backbone, config: AnomalyDiffusionConfig, concepts: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(backbone, config)
        self.concepts = tuple(concepts)
        self.training = {"loss": [], "mask_loss": []}
        self._control = control_attention(backbone.denoiser)
        check_text_width(backbone.denoiser, token_embedding(backbone).embedding_dim)
        self._reset()

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Learn from the examples of one product, or of several jointly: one encoder for all, words for each.

        Examples without a defect pixel are passed over.
        """
        defective = self.defective_examples(examples)
        self.concepts = tuple(sorted({(example.product, example.defect) for example in defective}))
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._reset()
        views = augmented_views(
            [dataclasses.replace(one, defect=_key(one.product, one.defect)) for one in defective],
            config.variants,
            config.canvas,
            config.context,
            config.min_side,
            self.backbone.resolution,
            np.random.default_rng(seed),
        )
        self.training = {"loss": self._fit_words(views, work_dir / "words", seed), "mask_loss": []}
        if config.masks == "generated":
            bank = mask_images(self.backbone, views, self._keys())
            self.training["mask_loss"] = fit_masks(
                self.backbone,
                self.shapes,
                bank,
                config.mask_model,
                config.batch_size,
                seed,
                work_dir / "masks",
                f"mask model of {self._products()}",
            )
            round_to_half(self.shapes)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        checked = [self._check(request) for request in requests]
        if not checked:
            return
        masks = self._masks(checked)
        resolution, config = self.backbone.resolution, self.config
        windows = [choose_window(mask, config.canvas, config.context, config.min_side) for mask in masks]
        pairs = list(zip(checked, windows, masks, strict=True))
        images = [crop_image(request.normal_image, window, resolution) for request, window, _ in pairs]
        shown = [crop_mask(mask, window, resolution) for _, window, mask in pairs]
        with torch.no_grad():
            drawn = self._draw(to_tensor(images), shown, requests)
        for canvas, (request, window, mask) in zip(drawn, pairs, strict=True):
            full = request.normal_image.astype(np.float32)
            full[window.slices] = resize_to_window(canvas, window)
            image = composite(request.normal_image, full, mask, config.feather)
            facts = {"prompt": config.prompts[0], "mask": "given" if mask is request.mask else "generated"}
            yield SyntheticPair(request.sample_id, image, mask, None, facts)

    def sample_masks(self, defect: str, count: int, seed: int, product: str | None = None) -> list[Mask]:
        """New masks of a defect from the learned mask model, bool [R, R] on a canvas of the backbone's resolution.

        Args:
            defect, product: fitted; the product may be left out when only one was.
            count: how many; fewer come back where the rules reject more than three in four.
            seed: decides all of them.

        Raises:
            InputError: not fitted, or fitted without the mask model.
        """
        known = {p for p, _ in self.concepts}
        product = next(iter(known)) if product is None and len(known) == 1 else product
        if (product, defect) not in self.concepts:
            names = " or ".join(map("/".join, self.concepts)) or "a fitted generator"
            raise InputError(f"masks of {product}/{defect}: not fitted; expected {names}")
        if not self.shapes.names:
            raise InputError(f"masks of {product}/{defect}: no mask model was fitted; expected masks: generated")
        words, found = self.shapes[_key(product, defect)], []
        for turn in range(_TRIES):
            seeds = [derive_seed(seed, product, self.name, defect, turn * count + i) for i in range(count)]
            made = draw_masks(self.backbone, [words] * count, self.config.mask_model, seeds)
            found += [mask for mask in made if mask is not None]
            if len(found) >= count:
                break
        return found[:count]

    def describe(self) -> dict[str, Any]:
        return {"concepts": [list(concept) for concept in self.concepts]}

    def state_dicts(self) -> Mapping[str, Mapping[str, Tensor]]:
        states: dict[str, Mapping[str, Tensor]] = {
            "words": {f"{kind}/{name}": rows for kind, name, rows in self._words()},
            "encoder": self.encoder.state_dict(),
        }
        if self.config.tune_denoiser:
            states["unet"] = self.backbone.denoiser.state_dict()
        return states

    @classmethod
    def restore(cls, backbone: Backbone, config: AnomalyDiffusionConfig, saved: SavedGenerator) -> Self:
        generator = cls(backbone, config, [(product, defect) for product, defect in saved.description["concepts"]])
        tokens = saved.state_dict("words")
        with torch.no_grad():
            for kind, name, rows in generator._words():
                rows.copy_(tokens[f"{kind}/{name}"])
        generator.encoder.load_state_dict(saved.state_dict("encoder"))
        if config.tune_denoiser:
            load_frozen(backbone.denoiser, saved.state_dict("unet"))
        return generator

    # learning

    def _reset(self) -> None:
        """Words and encoder as they are before any training."""
        config, backbone, keys = self.config, self.backbone, self._keys()
        mask_words = config.mask_model.tokens if config.masks == "generated" else 0
        table = token_embedding(backbone).weight.detach().float()
        self.words = ConceptTokens.from_word(backbone, dict.fromkeys(keys, config.anomaly_tokens), config.init_word)
        self.shapes = ConceptTokens.from_word(backbone, dict.fromkeys(keys if mask_words else (), mask_words), "mark")
        self.encoder = SpatialEncoder(
            config.encoder, config.spatial_tokens, table.shape[1], float(table.square().mean().sqrt())
        )
        for module in (self.words, self.shapes, self.encoder):
            module.to(backbone.device)

    def _fit_words(self, views: Sequence[View], work_dir: Path, seed: int) -> list[float]:
        """Masked textual inversion (paper eq. 5 and 6): the noise inside the mask is all that is learned from."""
        config, backbone, keys = self.config, self.backbone, self._keys()
        bank = encode_views(backbone, views, keys)
        masks = torch.from_numpy(np.stack([view.mask for view in views]))[:, None]
        cells = resize_mask(masks, backbone.latent_size, config.mask_policy)
        learned = nn.ModuleDict({"words": self.words, "encoder": self.encoder})
        if config.tune_denoiser:
            learned["denoiser"] = backbone.denoiser.requires_grad_(True)

        def loss(_step: int, generator: torch.Generator) -> Tensor:
            chosen = torch.randint(len(bank.latents), (config.batch_size,), generator=generator)
            noise = to_denoiser(backbone, torch.randn(chosen.shape + bank.latents.shape[1:], generator=generator))
            times = torch.randint(len(backbone.alphas_cumprod), chosen.shape, generator=generator)
            templates = torch.randint(len(config.prompts), chosen.shape, generator=generator)
            told = self._encode(
                [config.prompts[int(number)] for number in templates],
                [keys[int(number)] for number in bank.defects[chosen]],
                masks[chosen].float().to(backbone.device),
            )
            noised = add_noise(to_denoiser(backbone, bank.latents[chosen]), noise, backbone.alphas_cumprod[times])
            with bf16_autocast(backbone.device, backbone.latent_size):
                predicted = backbone.denoiser(noised, to_denoiser(backbone, times), told.states).sample
            return noise_loss(noise, predicted.float(), to_denoiser(backbone, cells[chosen]), config.reduction)

        losses = train(
            learned,
            loss,
            steps=config.steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=seed,
            work_dir=work_dir,
            label=f"learning words for the defects of {self._products()}",
            overrides={
                "encoder": {"learning_rate": config.encoder_learning_rate},
                "denoiser": {"learning_rate": config.denoiser_learning_rate},
            },
        )
        backbone.denoiser.requires_grad_(False)
        round_to_half(learned)
        return losses

    def _encode(self, prompts: Sequence[str], keys: Sequence[str], masks: Tensor) -> EncodedPrompts:
        """The prompts with the spatial anomaly embedding e = {e_a, e_s} in their slot.

        Args:
            masks: float [B, 1, R, R].
        """
        places = self.encoder(masks)
        slots = [{_SLOT: torch.cat([self.words[key], place])} for key, place in zip(keys, places, strict=True)]
        return encode_prompts(self.backbone, prompts, slots)

    # drawing

    def _draw(self, images: Tensor, masks: Sequence[Mask], requests: Sequence[SampleRequest]) -> np.ndarray:
        """Canvases with defects, float [B, R, R, 3] in 0 to 255."""
        config, backbone = self.config, self.backbone
        images, mask = (
            to_denoiser(backbone, images),
            to_denoiser(backbone, torch.from_numpy(np.stack(masks))[:, None].float()),
        )
        keys = [_key(request.product, request.defect) for request in requests]
        told = self._encode([config.prompts[0]] * len(keys), keys, mask.float())  # the encoder's own number type
        scene = Scene(images, mask, backbone.encode(images), to_denoiser(backbone, latent_masks(backbone, masks)))
        reweighting = None
        if config.reweighting != "off":
            tokens = told.marks()
            if config.reweighting == "official":
                tokens[:, 0] = True  # a slip of the index scales the start token too
            reweighting = Reweighting(config.reweighting, self._control, tokens, backbone.decode, config.min_difference)
        empty = None if config.guidance_scale == 1 else backbone.encode_text([""]).expand(len(keys), -1, -1)

        def under(text: Tensor):
            return lambda z, time: backbone.denoiser(z, time.to(z.device), text).sample.to(z.dtype)

        with bf16_inference(backbone.denoiser):
            drawn = draw(
                scene,
                under(told.states),
                make_trajectory(backbone.alphas_cumprod, config.sampling_steps),
                NoiseStream([request.seed for request in requests], scene.latents.shape[1:]),
                config.eta,
                reweighting,
                None if empty is None else under(empty),
                config.guidance_scale,
            )
        return to_pixels(backbone.decode(drawn))

    def _masks(self, requests: Sequence[CheckedRequest]) -> list[Mask]:
        """The requests' masks, or new shapes in their places; a rejected shape leaves the given mask."""
        if self.config.masks == "given":
            return [request.mask for request in requests]
        config = self.config
        words = [self.shapes[_key(request.product, request.defect)] for request in requests]
        shapes = draw_masks(self.backbone, words, config.mask_model, [request.seed for request in requests])
        masks = []
        for request, shape in zip(requests, shapes, strict=True):
            window = choose_window(request.mask, config.canvas, config.context, config.min_side)
            moved = None if shape is None else move_mask(shape, window, request.mask)
            masks.append(request.mask if moved is None else moved)
        return masks

    def _check(self, request: SampleRequest) -> CheckedRequest:
        fitted = [defect for product, defect in self.concepts if product == request.product]
        if not fitted:
            raise InputError(
                f"request {request.sample_id}: product {request.product!r} was not fitted; expected "
                f"{self._products() or 'a fitted generator'}"
            )
        checked = check_request(request, fitted)
        check_on_product(checked)
        return checked

    def _words(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        for kind, tokens in (("anomaly", self.words), ("mask", self.shapes)):
            for name, rows in tokens.vectors.items():
                yield kind, name, rows

    def _keys(self) -> list[str]:
        return [_key(product, defect) for product, defect in self.concepts]

    def _products(self) -> str:
        return " or ".join(sorted({product for product, _ in self.concepts}))


GENERATOR = AnomalyDiffusion


def _key(product: str, defect: str) -> str:
    return f"{product}/{defect}"
