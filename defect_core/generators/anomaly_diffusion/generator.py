"""AnomalyDiffusion as a generator: words are learned for how a defect looks and where it is, the network stays frozen.

Formulas stand in `reweighting.py` and `drawing.py`; this file turns real examples into training views and requests
into pairs.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defect_core.backbones import Backbone
from defect_core.diffusion.attention import check_text_width, control_attention
from defect_core.diffusion.losses import noise_loss, resize_mask
from defect_core.diffusion.samplers import NoiseStream
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.diffusion.tokens import ConceptTokens, EncodedPrompts, encode_prompts, token_embedding
from defect_core.errors import InputError
from defect_core.generators.anomaly_diffusion.config import CAPABILITIES, Config
from defect_core.generators.anomaly_diffusion.encoder import SpatialEncoder
from defect_core.generators.anomaly_diffusion.mask_model import draw_masks, fit_masks, mask_images, move_mask
from defect_core.generators.anomaly_diffusion.sampling import Reweighting, Scene, draw
from defect_core.generators.base import (
    Example,
    Generator,
    Mask,
    SampleRequest,
    SyntheticPair,
    check_request,
    derive_seed,
    read_description,
    write_description,
)
from defect_core.generators.canvas import choose_window, crop_image, crop_mask, resize_to_window
from defect_core.generators.composite import composite
from defect_core.generators.registry import GeneratorConfig
from defect_core.generators.views import (
    View,
    augmented_views,
    backbone_metadata,
    check_backbone,
    check_on_product,
    encode_views,
    latent_masks,
    round_to_half,
    to_denoiser,
    to_pixels,
    to_tensor,
)
from defect_core.training.loop import bf16_autocast, bf16_inference, train

_SLOT = "anomaly"
_TRIES = 4


class AnomalyDiffusion(Generator):
    """Anomaly tokens for each defect of each product, one spatial encoder for all; the U-Net is tuned only if asked."""

    name = "anomaly-diffusion"
    capabilities = CAPABILITIES

    def __init__(self, backbone: Backbone, config: Config, concepts: Sequence[tuple[str, str]]) -> None:
        self.backbone, self.config = backbone, config
        self.concepts = tuple(concepts)
        self.losses: list[float] = []
        self.mask_losses: list[float] = []
        self._control = control_attention(backbone.denoiser)
        check_text_width(backbone.denoiser, token_embedding(backbone).embedding_dim)
        self._reset()

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: Backbone) -> "AnomalyDiffusion":
        assert isinstance(config, Config)
        return cls(backbone, config, ())

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Learn from the examples of one product, or of several jointly: one encoder for all, words for each.

        Examples without a defect pixel are passed over.
        """
        defective = [example for example in examples if example.mask is not None and example.mask.any()]
        if not defective:
            raise InputError(f"{self.name}: no defect examples to learn from; expected at least one")
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
        self.losses = self._fit_words(views, work_dir / "words", seed)
        if config.masks == "generated":
            bank = mask_images(self.backbone, views, self._keys())
            self.mask_losses = fit_masks(
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
        for request in requests:
            self._check(request)
        if not requests:
            return
        masks = self._masks(requests)
        resolution, config = self.backbone.resolution, self.config
        windows = [choose_window(mask, config.canvas, config.context, config.min_side) for mask in masks]
        pairs = list(zip(requests, windows, masks, strict=True))
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

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        words = {f"{kind}/{name}": rows for kind, name, rows in self._words()}
        save_file(_halved(words), folder / "words.safetensors")
        save_file(_halved(self.encoder.state_dict()), folder / "encoder.safetensors")
        if self.config.tune_denoiser:
            save_file(_halved(self.backbone.denoiser.state_dict()), folder / "unet.safetensors")
        concepts = [list(concept) for concept in self.concepts]
        write_description(folder, self.name, self.config, concepts=concepts, backbone=backbone_metadata(self.backbone))
        losses = {"loss": self.losses, "mask_loss": self.mask_losses}
        (folder / "training.json").write_text(json.dumps(losses, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> "AnomalyDiffusion":
        described = read_description(folder, cls.name)
        check_backbone(folder, described, backbone)
        config = Config.model_validate(described["config"])
        made = cls(backbone, config, [(product, defect) for product, defect in described["concepts"]])
        stored = load_file(folder / "words.safetensors")
        with torch.no_grad():
            for kind, name, rows in made._words():
                rows.copy_(stored[f"{kind}/{name}"].float())
        made.encoder.load_state_dict(_widened(load_file(folder / "encoder.safetensors")))
        if config.tune_denoiser:
            backbone.denoiser.load_state_dict(_widened(load_file(folder / "unet.safetensors")))
            backbone.denoiser.requires_grad_(False).eval()
        return made

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
            times = torch.randint(len(backbone.schedule), chosen.shape, generator=generator)
            templates = torch.randint(len(config.prompts), chosen.shape, generator=generator)
            told = self._encode(
                [config.prompts[int(number)] for number in templates],
                [keys[int(number)] for number in bank.defects[chosen]],
                masks[chosen].float().to(backbone.device),
            )
            noised = add_noise(to_denoiser(backbone, bank.latents[chosen]), noise, backbone.schedule[times])
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
                make_trajectory(backbone.schedule, config.sampling_steps),
                NoiseStream([request.seed for request in requests], scene.latents.shape[1:]),
                config.eta,
                reweighting,
                None if empty is None else under(empty),
                config.guidance_scale,
            )
        return to_pixels(backbone.decode(drawn))

    def _masks(self, requests: Sequence[SampleRequest]) -> list[Mask]:
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

    def _check(self, request: SampleRequest) -> None:
        fitted = [defect for product, defect in self.concepts if product == request.product]
        if not fitted:
            raise InputError(
                f"request {request.sample_id}: product {request.product!r} was not fitted; expected "
                f"{self._products() or 'a fitted generator'}"
            )
        check_request(request, fitted)
        check_on_product(request)

    def _words(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        for kind, tokens in (("anomaly", self.words), ("mask", self.shapes)):
            for name, rows in tokens.vectors.items():
                yield kind, name, rows

    def _keys(self) -> list[str]:
        return [_key(product, defect) for product, defect in self.concepts]

    def _products(self) -> str:
        return " or ".join(sorted({product for product, _ in self.concepts}))


METHOD = AnomalyDiffusion


def _key(product: str, defect: str) -> str:
    return f"{product}/{defect}"


def _halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().half().contiguous() for name, tensor in state.items()}


def _widened(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in state.items()}
