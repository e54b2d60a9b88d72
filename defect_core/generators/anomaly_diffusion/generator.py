"""AnomalyDiffusion as a generator: it learns tokens for the appearance and the place of defects.

The formulas are in `reweighting.py` and `sampling.py`. This module turns real examples into training views and
requests into pairs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import check_text_width, control_attention
from defect_core.diffusion.checkpointing import enable_gradient_checkpointing
from defect_core.diffusion.losses import noise_loss, resize_mask
from defect_core.diffusion.samplers import Denoiser, NoiseStream
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.diffusion.tokens import ConceptTokens, EncodedPrompts, encode_prompts, token_embedding
from defect_core.errors import InputError
from defect_core.generators.anomaly_diffusion.config import CAPABILITIES, AnomalyDiffusionConfig
from defect_core.generators.anomaly_diffusion.encoder import SpatialEncoder
from defect_core.generators.anomaly_diffusion.mask_model import (
    fit_mask_tokens,
    generate_masks,
    move_mask,
    render_mask,
)
from defect_core.generators.anomaly_diffusion.sampling import NormalCanvases, Reweighting, sample_blended
from defect_core.generators.base import (
    CheckedRequest,
    Example,
    Image,
    Mask,
    SampleRequest,
    SyntheticPair,
    check_request,
)
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
    ViewSource,
    latent_masks,
    to_denoiser,
    to_pixels,
    to_tensor,
)
from defect_core.seeds import derive_seed
from defect_core.training.loop import TrainingConfig, train
from defect_core.training.precision import inference_autocast, training_autocast

_SLOT = "anomaly"
_MASK_INIT_WORD = "mark"
_MASK_ATTEMPTS = 4


class AnomalyDiffusion(TrainedGenerator[AnomalyDiffusionConfig]):
    """Anomaly tokens for each defect type of each product, one spatial encoder for all, and an optionally tuned U-Net.

    Attributes:
        concepts: the fitted pairs of product and defect type.
        tokens: anomaly tokens of each concept.
        mask_tokens: tokens of the mask model for each concept; empty without `masks: generated`.
        encoder: the spatial encoder.
    """

    name = "anomaly-diffusion"
    capabilities = CAPABILITIES
    config_class = AnomalyDiffusionConfig

    def __init__(
        self, backbone: Backbone, config: AnomalyDiffusionConfig, concepts: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(backbone, config)
        self.capabilities = config.capabilities(CAPABILITIES)
        self.concepts = tuple(concepts)
        self.training = {"loss": [], "mask_loss": []}
        self._control = control_attention(backbone.denoiser)
        check_text_width(backbone.denoiser, token_embedding(backbone).embedding_dim)
        self._initialise()

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Learn from the examples of one product, or of several products with one encoder; see `Generator.fit`.

        Examples without a defect pixel are skipped.
        """
        defective = self.defective_examples(examples)
        self.concepts = tuple(sorted({(example.product, example.defect) for example in defective}))
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._initialise()
        keyed = [dataclasses.replace(example, defect=_key(example.product, example.defect)) for example in defective]
        views = self._views(keyed, seed)
        self.training = {"loss": self._fit_tokens(views, work_dir / "tokens", seed), "mask_loss": []}
        if config.masks == "generated":
            self.training["mask_loss"] = fit_mask_tokens(
                self.backbone,
                self.mask_tokens,
                lambda name: self._views(keyed, seed, name, render_mask),
                config.mask_model,
                config.batch_size,
                seed,
                work_dir / "masks",
                f"mask model of {self._products()}",
            )
            round_to_half(self.mask_tokens)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request; see `Generator.sample`."""
        checked = [self._check(request) for request in requests]
        if not checked:
            return
        masks = self._masks(checked)
        resolution, config = self.backbone.resolution, self.config
        windows = [choose_window(mask, config.canvas, config.context, config.min_side) for mask in masks]
        targets = list(zip(checked, windows, masks, strict=True))
        images = [crop_image(request.normal_image, window, resolution) for request, window, _ in targets]
        cropped_masks = [crop_mask(mask, window, resolution) for _, window, mask in targets]
        with torch.no_grad():
            canvases = self._generate_canvases(to_tensor(images), cropped_masks, checked)
        for canvas, (request, window, mask) in zip(canvases, targets, strict=True):
            full = request.normal_image.astype(np.float32)
            full[window.slices] = resize_to_window(canvas, window)
            if config.paste:
                image = composite(request.normal_image, full, mask, config.feather)
            else:
                image = np.clip(np.rint(full), 0, 255).astype(np.uint8)
            metadata = {"prompt": config.prompts[0], "mask": "given" if mask is request.mask else "generated"}
            yield SyntheticPair(request.sample_id, image, mask, metadata=metadata)

    def sample_masks(self, defect: str, count: int, seed: int, product: str | None = None) -> list[Mask]:
        """Return new masks of a defect type from the mask model, bool [R, R] at the backbone's resolution.

        Args:
            defect: a fitted defect type.
            count: number of masks; fewer are returned if the rules reject more than three in four.
            seed: the only source of randomness.
            product: a fitted product; may be omitted if only one was fitted.

        Raises:
            InputError: the concept was not fitted, or the mask model was not.
        """
        products = {fitted_product for fitted_product, _ in self.concepts}
        if product is None and len(products) == 1:
            product = next(iter(products))
        if product is None or (product, defect) not in self.concepts:
            names = " or ".join(map("/".join, self.concepts)) or "a fitted generator"
            raise InputError(f"masks of {product}/{defect}: not fitted; expected {names}")
        if not self.mask_tokens.names:
            raise InputError(f"masks of {product}/{defect}: no mask model was fitted; expected masks: generated")
        tokens = self.mask_tokens[_key(product, defect)]
        accepted: list[Mask] = []
        for attempt in range(_MASK_ATTEMPTS):
            seeds = [derive_seed(seed, product, self.name, defect, attempt * count + i) for i in range(count)]
            masks = generate_masks(self.backbone, [tokens] * count, self.config.mask_model, seeds)
            accepted += [mask for mask in masks if mask is not None]
            if len(accepted) >= count:
                break
        return accepted[:count]

    def describe(self) -> dict[str, Any]:
        """Return the fitted concepts."""
        return {"concepts": [list(concept) for concept in self.concepts]}

    def state_dicts(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the tokens, the encoder, and the U-Net if it was trained."""
        states: dict[str, Mapping[str, Tensor]] = {
            "tokens": dict(self._named_tokens()),
            "encoder": self.encoder.state_dict(),
        }
        if self.config.tune_denoiser:
            states["unet"] = self.backbone.denoiser.state_dict()
        return states

    @classmethod
    def restore(cls, backbone: Backbone, config: AnomalyDiffusionConfig, saved: SavedGenerator) -> Self:
        """Return the generator with the saved tokens and networks."""
        generator = cls(backbone, config, [(product, defect) for product, defect in saved.description["concepts"]])
        stored = saved.state_dict("tokens")
        with torch.no_grad():
            for name, rows in generator._named_tokens():
                rows.copy_(stored[name])
        generator.encoder.load_state_dict(saved.state_dict("encoder"))
        if config.tune_denoiser:
            load_frozen(backbone.denoiser, saved.state_dict("unet"))
        return generator

    def _initialise(self) -> None:
        """Create tokens and encoder as they are before training."""
        config, backbone, keys = self.config, self.backbone, self._keys()
        embeddings = token_embedding(backbone).weight.detach().float()
        scale = float(embeddings.square().mean().sqrt())
        mask_counts = dict.fromkeys(keys, config.mask_model.tokens) if config.masks == "generated" else {}
        counts = dict.fromkeys(keys, config.anomaly_tokens)
        if config.init_word is None:
            self.tokens = ConceptTokens({key: scale * torch.randn(k, embeddings.shape[1]) for key, k in counts.items()})
        else:
            self.tokens = ConceptTokens.from_init_word(backbone, counts, config.init_word)
        self.mask_tokens = ConceptTokens.from_init_word(backbone, mask_counts, _MASK_INIT_WORD)
        self.encoder = SpatialEncoder(config.encoder, config.spatial_tokens, embeddings.shape[1], scale)
        for module in (self.tokens, self.mask_tokens, self.encoder):
            module.to(backbone.device).eval()

    def _views(
        self,
        examples: Sequence[Example],
        seed: int,
        key: str | None = None,
        render: Callable[[View], Image] | None = None,
    ) -> ViewSource:
        """Return views of the examples, of one concept if a key is given."""
        config = self.config
        chosen = [example for example in examples if key in (None, example.defect)]
        return ViewSource(self.backbone, chosen, config, np.random.default_rng(seed), render=render)

    def _fit_tokens(self, views: ViewSource, work_dir: Path, seed: int) -> list[float]:
        """Train with masked textual inversion (eq. 5 and 6), on the noise inside the mask; return the losses."""
        config, backbone = self.config, self.backbone
        trained = nn.ModuleDict({"tokens": self.tokens, "encoder": self.encoder})
        if config.tune_denoiser:
            trained["denoiser"] = backbone.denoiser.requires_grad_(True)
        training = TrainingConfig(
            config.steps,
            config.learning_rate,
            config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            overrides={
                "encoder": {"learning_rate": config.encoder_learning_rate},
                "denoiser": {"learning_rate": config.denoiser_learning_rate},
            },
            schedule=config.schedule,
        )
        if backbone.compute.gradient_checkpointing:
            enable_gradient_checkpointing(backbone.denoiser)
        label = f"learning tokens for the defects of {self._products()}"
        compute = self.backbone.compute
        loss = self._make_loss(views)
        losses = train(trained, loss, training, seed=seed, work_dir=work_dir, label=label, compute=compute)
        backbone.denoiser.requires_grad_(False)
        round_to_half(trained)
        return losses

    def _make_loss(self, views: ViewSource) -> Callable[[int, torch.Generator], Iterator[Tensor]]:
        config, backbone = self.config, self.backbone

        def loss(_step: int, generator: torch.Generator) -> Iterator[Tensor]:
            batch = views.batch(config.batch_size, generator)
            count = len(batch.latents)
            noise = to_denoiser(backbone, torch.randn(batch.latents.shape, generator=generator))
            times = torch.randint(len(backbone.alphas_cumprod), (count,), generator=generator)
            prompts = torch.randint(len(config.prompts), (count,), generator=generator)
            loss_masks = to_denoiser(backbone, resize_mask(batch.masks, backbone.latent_size, config.mask_policy))
            for rows in torch.arange(count).tensor_split(min(backbone.compute.accumulate, count)):
                encoded = self._encode(
                    [config.prompts[int(index)] for index in prompts[rows]],
                    [batch.defects[int(row)] for row in rows],
                    batch.masks[rows].float().to(backbone.device),
                )
                alphas_cumprod = backbone.alphas_cumprod[times[rows]]
                noised = add_noise(to_denoiser(backbone, batch.latents[rows]), noise[rows], alphas_cumprod)
                with training_autocast(backbone.device, backbone.latent_size, compute=backbone.compute):
                    predicted = backbone.denoiser(noised, to_denoiser(backbone, times[rows]), encoded.states).sample
                if len(rows) == count:
                    yield noise_loss(noise, predicted.float(), loss_masks, config.reduction)
                else:
                    part = noise_loss(noise[rows], predicted.float(), loss_masks[rows], "sum")
                    yield part / _divisor(noise, loss_masks, config.reduction)

        return loss

    def _encode(self, prompts: Sequence[str], keys: Sequence[str], masks: Tensor) -> EncodedPrompts:
        """Return the encoded prompts with the spatial anomaly embedding e = {e_a, e_s} in their slot.

        Args:
            prompts: B prompts.
            keys: B keys of concepts, which choose the anomaly tokens e_a.
            masks: float [B, 1, R, R], from which the encoder computes the spatial tokens e_s.
        """
        spatial = self.encoder(masks)
        slots = [{_SLOT: torch.cat([self.tokens[key], rows])} for key, rows in zip(keys, spatial, strict=True)]
        return encode_prompts(self.backbone, prompts, slots)

    def _generate_canvases(
        self, images: Tensor, masks: Sequence[Mask], requests: Sequence[CheckedRequest]
    ) -> np.ndarray:
        """Return canvases with defects, float [B, R, R, 3] in 0 to 255."""
        config, backbone = self.config, self.backbone
        images = to_denoiser(backbone, images)
        mask = to_denoiser(backbone, torch.from_numpy(np.stack(masks))[:, None].float())
        keys = [_key(request.product, request.defect) for request in requests]
        # The encoder is float32 even if the denoiser is not.
        encoded = self._encode([config.prompts[0]] * len(keys), keys, mask.float())
        normal = NormalCanvases(
            images, mask, backbone.encode(images), to_denoiser(backbone, latent_masks(backbone, masks))
        )

        def denoiser(text: Tensor) -> Denoiser[Tensor]:
            return lambda z, time: backbone.denoiser(z, time.to(z.device), text).sample.to(z.dtype)

        guidance = None
        if config.guidance_scale != 1:
            guidance = config.guidance_scale, denoiser(backbone.encode_text([""]).expand(len(keys), -1, -1))
        with inference_autocast(backbone.denoiser, compute=backbone.compute):
            latents = sample_blended(
                normal,
                denoiser(encoded.states),
                make_trajectory(backbone.alphas_cumprod, config.sampling_steps),
                NoiseStream([request.seed for request in requests], normal.latents.shape[1:]),
                config.eta,
                self._reweighting(encoded),
                guidance,
                config.blend_result,
            )
        return to_pixels(backbone.decode(latents))

    def _reweighting(self, encoded: EncodedPrompts) -> Reweighting | None:
        config = self.config
        if config.reweighting == "off":
            return None
        tokens = encoded.token_mask()
        if config.reweighting == "official":
            tokens[:, 0] = True  # An index error of the public code scales the start token too.
        return Reweighting(config.reweighting, self._control, tokens, self.backbone.decode, config.min_difference)

    def _masks(self, requests: Sequence[CheckedRequest]) -> list[Mask]:
        """Return the requested masks, or generated masks in their places unless the rules reject them."""
        config = self.config
        if config.masks == "given":
            return [request.mask for request in requests]
        tokens = [self.mask_tokens[_key(request.product, request.defect)] for request in requests]
        generated = generate_masks(self.backbone, tokens, config.mask_model, [request.seed for request in requests])
        masks = []
        for request, shape in zip(requests, generated, strict=True):
            window = choose_window(request.mask, config.canvas, config.context, config.min_side)
            is_sampled = config.mask_model.position == "sampled"
            moved = None if shape is None else move_mask(shape, window, request.mask, is_sampled)
            masks.append(request.mask if moved is None else moved)
        return masks

    def _check(self, request: SampleRequest) -> CheckedRequest:
        defects = [defect for product, defect in self.concepts if product == request.product]
        if not defects:
            raise InputError(
                f"request {request.sample_id}: product {request.product!r} was not fitted; expected "
                f"{self._products() or 'a fitted generator'}"
            )
        checked = check_request(request, defects)
        check_on_product(checked)
        return checked

    def _named_tokens(self) -> Iterator[tuple[str, nn.Parameter]]:
        for kind, tokens in (("anomaly", self.tokens), ("mask", self.mask_tokens)):
            for name, rows in tokens.embeddings.items():
                yield f"{kind}/{name}", rows

    def _keys(self) -> list[str]:
        return [_key(product, defect) for product, defect in self.concepts]

    def _products(self) -> str:
        return " or ".join(sorted({product for product, _ in self.concepts}))


GENERATOR = AnomalyDiffusion


def _key(product: str, defect: str) -> str:
    return f"{product}/{defect}"


def _divisor(noise: Tensor, masks: Tensor, reduction: str) -> Tensor | float:
    """Return what `noise_loss` divides the sum over a whole batch by."""
    if reduction == "masked_mean":
        return (masks.sum() * noise.shape[1]).clamp(min=1)
    return noise.numel() if reduction == "global_mean" else 1.0
