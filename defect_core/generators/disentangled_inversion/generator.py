"""Disentangled DDIM inversion as a generator: few-shot training of the U-Net, then inversion and drawing.

Formulas stand in `inversion.py`; this file turns real examples into training views and requests into pairs.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from defect_core.backbones import Backbone
from defect_core.diffusion.attention import control_attention, resize_map
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.errors import InputError
from defect_core.generators.base import (
    Example,
    Generator,
    Image,
    Mask,
    SampleRequest,
    SyntheticPair,
    check_request,
    read_description,
    write_description,
)
from defect_core.generators.canvas import Window, choose_window, crop_image, crop_mask, resize_to_window
from defect_core.generators.composite import composite, paste
from defect_core.generators.disentangled_inversion.config import CAPABILITIES, Config
from defect_core.generators.disentangled_inversion.inversion import draw, invert, masked_loss, sample_noise
from defect_core.generators.disentangled_inversion.refinement import refine_by_attention, refine_by_difference
from defect_core.generators.registry import GeneratorConfig
from defect_core.generators.views import (
    augmented_views,
    backbone_metadata,
    check_backbone,
    encode_views,
    latent_masks,
    prompt_words,
    round_to_half,
    to_denoiser,
    to_pixels,
    to_tensor,
)
from defect_core.training.loop import bf16_inference, train


class DisentangledInversion(Generator):
    """One U-Net per product, tuned on all its defects; VAE and text encoder stay frozen."""

    name = "disentangled-inversion"
    capabilities = CAPABILITIES

    def __init__(self, backbone: Backbone, config: Config, product: str, defects: Sequence[str]) -> None:
        self.backbone, self.config, self.product, self.defects = backbone, config, product, tuple(defects)
        self.losses: list[float] = []
        self._control = control_attention(backbone.denoiser)

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: Backbone) -> "DisentangledInversion":
        assert isinstance(config, Config)
        return cls(backbone, config, "", ())

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        defective = [example for example in examples if example.mask is not None]
        if not defective:
            raise InputError("disentangled-inversion: no defect examples to learn from; expected at least one")
        self.product = defective[0].product
        self.defects = tuple(sorted({example.defect for example in defective}))
        config = self.config
        views = augmented_views(
            defective,
            config.variants,
            config.canvas,
            config.context,
            config.min_side,
            self.backbone.resolution,
            np.random.default_rng(seed),
        )
        bank = encode_views(self.backbone, views, self.defects)
        backbone, denoiser, prompts = self.backbone, self.backbone.denoiser, self._prompts()
        denoiser.requires_grad_(True)

        def loss(step: int, generator: torch.Generator) -> Tensor:
            chosen = torch.randint(len(bank.latents), (self.config.batch_size,), generator=generator)
            noise = torch.randn(chosen.shape + bank.latents.shape[1:], generator=generator)
            times = torch.randint(len(backbone.schedule), chosen.shape, generator=generator)
            latents, mask = to_denoiser(backbone, bank.latents[chosen]), to_denoiser(backbone, bank.masks[chosen])
            noise, levels = to_denoiser(backbone, noise), backbone.schedule[times]
            noised = add_noise(latents, noise, levels)
            inside = torch.cat([prompts.defect[bank.defects[chosen]], prompts.hole.expand(len(chosen), -1, -1)])
            with self._control.regions(prompts.background, torch.cat([mask, mask])):
                # one call for both branches: z_t^m = (1 − m)·z_t, same noise and time (brief §6.2)
                both = denoiser(
                    torch.cat([noised, (1 - mask) * noised]),
                    to_denoiser(self.backbone, torch.cat([times, times])),
                    inside,
                ).sample
            defect_noise, background_noise = both.chunk(2)
            return masked_loss(noise, defect_noise, background_noise, mask, self.config.balance)

        self.losses = train(
            denoiser,
            loss,
            steps=self.config.steps,
            learning_rate=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            seed=seed,
            work_dir=work_dir,
            label=f"fine-tuning {self.name} on {self.product}",
        )
        denoiser.requires_grad_(False)
        round_to_half(denoiser)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        if len(requests) == 1 and self.backbone.device.type == "cpu":
            # alone it would be rounded otherwise in bfloat16, and pixels at the edge of its mask would come and go
            yield next(self.sample([*requests, *requests]))
            return
        views = [self._view(request) for request in requests]
        if not views:
            return
        canvases = to_tensor([view.image for view in views])
        examples = (
            to_denoiser(self.backbone, to_tensor([view.shown_example(self.backbone.resolution) for view in views]))
            if self.config.start == "example"
            else None
        )
        mask = latent_masks(self.backbone, [view.mask for view in views])
        with torch.no_grad():
            walked = self._generate(
                to_denoiser(self.backbone, canvases),
                examples,
                to_denoiser(self.backbone, mask),
                [r.defect for r in requests],
                [r.seed for r in requests],
            )
        for index, (request, view) in enumerate(zip(requests, views, strict=True)):
            yield self._finish(request, view, walked, index, mask[index, 0].numpy() > 0)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.half().contiguous() for name, tensor in self.backbone.denoiser.state_dict().items()}
        save_file(state, folder / "unet.safetensors")
        write_description(
            folder,
            self.name,
            self.config,
            product=self.product,
            defects=list(self.defects),
            backbone=backbone_metadata(self.backbone),
        )
        (folder / "training.json").write_text(json.dumps({"loss": self.losses}) + "\n")

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> "DisentangledInversion":
        described = read_description(folder, cls.name)
        check_backbone(folder, described, backbone)
        config = Config.model_validate(described["config"])
        made = cls(backbone, config, described["product"], described["defects"])
        backbone.denoiser.load_state_dict({k: v.float() for k, v in load_file(folder / "unet.safetensors").items()})
        backbone.denoiser.requires_grad_(False).eval()
        return made

    # sampling

    def _generate(
        self, canvases: Tensor, examples: Tensor | None, mask: Tensor, defects: Sequence[str], seeds: list[int]
    ) -> "_Walked":
        config, backbone, prompts = self.config, self.backbone, self._prompts()
        trajectory = make_trajectory(backbone.schedule, config.sampling_steps)
        inside = prompts.defect[[self.defects.index(defect) for defect in defects]]
        tokens = prompts.tokens[[self.defects.index(defect) for defect in defects]]
        kept: list[Tensor] = []

        def predict(latents: Tensor, time: Tensor, text: Tensor, watch: Tensor | None = None) -> Tensor:
            time = time.to(latents.device)
            with self._control.regions(prompts.background, mask):
                if watch is None:
                    return backbone.denoiser(latents, time, text).sample.to(latents.dtype)
                with self._control.capture(watch[:, None]) as maps:
                    noise = backbone.denoiser(latents, time, text).sample
            kept.extend(_same_size([part[:, 0].to(latents) for _, part in maps.layers], mask.shape[-1]))
            return noise.to(latents.dtype)

        def background(latents: Tensor, time: Tensor) -> Tensor:
            return predict(latents, time, prompts.hole)

        def defect(latents: Tensor, time: Tensor) -> Tensor:
            noise = predict(latents, time, inside, tokens if config.refinement == "attention" else None)
            if config.guidance_scale == 1:
                return noise
            plain = predict(latents, time, prompts.hole)
            return plain + config.guidance_scale * (noise - plain)

        clean = backbone.encode(canvases)
        noise = to_denoiser(self.backbone, sample_noise(seeds, tuple(clean.shape[1:])))
        example = None if examples is None else backbone.encode(examples)
        level = trajectory.steps if example is None else max(1, round(config.start_level * trajectory.steps))
        again = background if config.mode == "paper" else None
        with bf16_inference(backbone.denoiser):
            inverted = invert(clean, mask, background, trajectory, level)  # what lies above is not walked again
            latents = draw(inverted, mask, noise, defect, again, trajectory, example, level)
        drawn = backbone.decode(latents)
        return _Walked(
            to_pixels(drawn),
            to_pixels(backbone.decode(clean)),
            to_pixels(backbone.decode(example)) if example is not None and config.residual else None,
            torch.stack(kept).mean(0).cpu().numpy() if kept else None,
        )

    def _finish(
        self, request: SampleRequest, view: "_View", walked: "_Walked", index: int, cells: Mask
    ) -> SyntheticPair:
        back = resize_to_window(walked.drawn[index], view.window)
        allowed = view.mask_at(cells)
        soft = None
        if self.config.refinement == "difference":
            mask, soft = refine_by_difference(back, resize_to_window(walked.normal[index], view.window), allowed)
        elif self.config.refinement == "attention":
            mask, soft = refine_by_attention(walked.attention[index], allowed & request.mask[view.window.slices])
        else:
            mask = request.mask[view.window.slices].copy()
        if not mask.any():
            mask = request.mask[view.window.slices].copy()
        full_mask = np.zeros_like(request.mask)
        full_mask[view.window.slices] = mask
        full = request.normal_image.astype(np.float32)
        if walked.example is not None:
            back += view.example[view.window.slices] - resize_to_window(walked.example[index], view.window)
        full[view.window.slices] = back
        image = composite(request.normal_image, full, full_mask, self.config.feather)
        full_soft = None
        if soft is not None:
            full_soft = np.zeros(request.mask.shape, np.float32)
            full_soft[view.window.slices] = soft
        return SyntheticPair(request.sample_id, image, full_mask, full_soft, {"prompt": self._prompt(request.defect)})

    def _view(self, request: SampleRequest) -> "_View":
        check_request(request, self.defects)
        window = choose_window(request.mask, self.config.canvas, self.config.context, self.config.min_side)
        resolution = self.backbone.resolution
        example = None
        if self.config.start == "example":
            if request.warped is None:
                raise InputError(f"request {request.sample_id}: start: example needs a real example; found none")
            # with a hard edge: `composite` softens the drawn one's
            example = paste(request.normal_image, request.warped, request.mask, 0.0, 1.0)
        return _View(
            window,
            crop_image(request.normal_image, window, resolution),
            crop_mask(request.mask, window, resolution),
            example,
        )

    # texts and tensors

    def _prompt(self, defect: str) -> str:
        return self.config.defect_prompt.format(defect=prompt_words(defect), product=prompt_words(self.product))

    def _prompts(self) -> "_Prompts":
        encode = self.backbone.encode_text
        with torch.no_grad():
            defect = encode([self._prompt(name) for name in self.defects])
            background = encode([self.config.background_prompt.format(product=prompt_words(self.product))])
            hole = encode([self.config.hole_prompt])
        marked = [
            _token_mask(self.backbone.tokenizer, self._prompt(n), prompt_words(n), defect.shape[1])
            for n in self.defects
        ]
        return _Prompts(defect, background, hole, torch.stack(marked).to(defect.device))


METHOD = DisentangledInversion


@dataclass(frozen=True)
class _Prompts:
    defect: Tensor
    background: Tensor
    hole: Tensor
    tokens: Tensor


class _Walked(NamedTuple):
    """Canvases [B, R, R, 3] in 0 to 255: drawn; the normal one and the example, both through the autoencoder alone
    (the example with `residual`); and attention maps [B, h, w] where the masks are refined by them.
    """

    drawn: np.ndarray
    normal: np.ndarray
    example: np.ndarray | None
    attention: np.ndarray | None


@dataclass(frozen=True)
class _View:
    """A request in its window: canvas and mask at the backbone's resolution, the pasted example at the image's own."""

    window: Window
    image: Image
    mask: Mask
    example: Image | None

    def shown_example(self, resolution: int) -> Image:
        return crop_image(self.example, self.window, resolution)

    def mask_at(self, cells: Mask) -> Mask:
        """The latent cells that were drawn, at the window's own size."""
        return resize_to_window(np.kron(cells, np.ones((8, 8), np.float32)), self.window) > 0.5


def _token_mask(tokenizer: Any, prompt: str, word: str, length: int) -> Tensor:
    """Which token positions of a prompt spell the defect's name (bool [length]; position 0 is the start token)."""
    before = tokenizer(prompt[: prompt.index(word)].strip(), add_special_tokens=False)["input_ids"]
    spelled = tokenizer(word, add_special_tokens=False)["input_ids"]
    marked = torch.zeros(length, dtype=torch.bool)
    marked[1 + len(before) : 1 + len(before) + len(spelled)] = True
    return marked


def _same_size(maps: list[Tensor], side: int) -> list[Tensor]:
    """Attention maps of the two finest layers' sizes, brought to the latent side (brief §6.3 step 5)."""
    finest = sorted({part.shape[-1] for part in maps})[-2:]
    return [resize_map(part[:, None], side)[:, 0] for part in maps if part.shape[-1] in finest]
