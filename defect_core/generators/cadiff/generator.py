"""CADiff as a generator: tokens and a mask-controlled branch per product, then drawing with an intensity.

The trained parts and their loss stand in `model.py`, the formulas in `control.py`, `objective.py` and `intensity.py`;
this file turns real examples into training views and requests into pairs.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from defect_core.backbones import Backbone
from defect_core.diffusion.attention import attention_sides, check_text_width, control_attention
from defect_core.diffusion.losses import agreement, resize_mask
from defect_core.diffusion.samplers import blend, guide, noise_from_seeds, sample
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.diffusion.tokens import EncodedPrompts
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
from defect_core.generators.cadiff.compose import named_defects, split_mask
from defect_core.generators.cadiff.config import CAPABILITIES, Config
from defect_core.generators.cadiff.intensity import DelayedFocus, draw_strength, focus, spatial_weights
from defect_core.generators.cadiff.model import Batch, Model, anomaly_slots, token_groups
from defect_core.generators.canvas import Window, choose_window, crop_image, crop_mask, resize_to_window
from defect_core.generators.composite import composite
from defect_core.generators.registry import GeneratorConfig
from defect_core.generators.views import (
    augmented_views,
    backbone_metadata,
    check_backbone,
    check_on_product,
    encode_views,
    latent_masks,
    prompt_words,
    round_to_half,
    to_denoiser,
    to_pixels,
    to_tensor,
)
from defect_core.training.loop import bf16_inference, train

STRONGEST = 2.0
_CHECK_VIEWS = 32


class CADiff(Generator):
    """One context token, one anomaly token per defect and one control branch per product; the U-Net stays frozen."""

    name = "cadiff"
    capabilities = CAPABILITIES

    def __init__(self, backbone: Backbone, config: Config, product: str, defects: Sequence[str]) -> None:
        self.backbone, self.config, self.product, self.defects = backbone, config, product, tuple(defects)
        # what this instance keeps is a matter of its settings; the class capabilities what the default settings do
        self.capabilities = dataclasses.replace(CAPABILITIES, keeps_background=config.paste)
        self.losses: list[float] = []
        self.attention_iou: list[float] = []  # before and after the fit
        self.model: Model | None = None
        self._attention = control_attention(backbone.denoiser)
        check_text_width(backbone.denoiser, backbone.text_encoder.config.hidden_size)
        sides = attention_sides(backbone.denoiser, backbone.latent_size)
        for side in config.loss_sides:
            if side not in sides:
                raise InputError(
                    f"cadiff: loss_sides names {side}, but the backbone's cross-attention has the sides "
                    f"{', '.join(map(str, sorted(sides)))}; expected some of these"
                )
        self._focus_side = min(sides, key=lambda side: (abs(side - config.focus_side), side))

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: Backbone) -> "CADiff":
        assert isinstance(config, Config)
        return cls(backbone, config, "", ())

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        defective = [example for example in examples if example.mask is not None]
        if not defective:
            raise InputError("cadiff: no defect examples to learn from; expected at least one")
        self.product = defective[0].product
        self.defects = tuple(sorted({example.defect for example in defective}))
        config, backbone = self.config, self.backbone
        good = [example for example in examples if example.mask is None]
        unshown = round(config.normal_share * config.batch_size) if good else 0
        shown, rng = (config.canvas, config.context, config.min_side, backbone.resolution), np.random.default_rng(seed)
        views = augmented_views(defective, config.variants, *shown, rng)
        bank = encode_views(backbone, views, self.defects)
        images = torch.from_numpy(np.stack([view.mask for view in views]))[:, None]
        plain = bank.latents[:0]
        if unshown:
            repeats = max(1, len(views) // len(good))
            plain = encode_views(backbone, augmented_views(good, repeats, *shown, rng), self.defects).latents
        self.model = model = Model(backbone, config, len(self.defects), seed)

        def batch(size: int, unshown: int, generator: torch.Generator) -> Batch:
            chosen = torch.randint(len(bank.latents), (size,), generator=generator)
            noise = torch.randn(chosen.shape + bank.latents.shape[1:], generator=generator)
            times = torch.randint(len(backbone.schedule), chosen.shape, generator=generator)
            templates = torch.randint(len(config.templates), chosen.shape, generator=generator).tolist()
            latents, is_shown = bank.latents[chosen], torch.ones(len(chosen), dtype=torch.bool)
            if unshown:  # good images, told of a defect in the place of another's mask
                rows = torch.randint(len(plain), (unshown,), generator=generator)
                latents = torch.cat([latents[:-unshown], plain[rows]])
                is_shown[-unshown:] = False
            return Batch(
                to_denoiser(backbone, latents),
                to_denoiser(backbone, bank.masks[chosen]),
                to_denoiser(backbone, images[chosen].float()),
                bank.defects[chosen],
                to_denoiser(backbone, noise),
                to_denoiser(backbone, times),
                [config.templates[number] for number in templates],
                to_denoiser(backbone, is_shown),
            )

        def loss(_step: int, generator: torch.Generator) -> Tensor:
            return model.loss(batch(config.batch_size, unshown, generator), generator, reduced=True)

        def measure() -> float:
            """How well the anomaly tokens' attention finds the defects: mean IoU (`agreement`), fixed noise."""
            count, size = min(_CHECK_VIEWS, len(views)), config.batch_size
            checked = batch(count, 0, torch.Generator().manual_seed(seed))
            parts = [Batch(*(field[i : i + size] for field in checked)) for i in range(0, count, size)]
            with torch.no_grad():
                maps = torch.cat([model.attention(part, self._focus_side) for part in parts])
            return round(float(agreement(maps, resize_mask(checked.masks, self._focus_side)).mean()), 4)

        before = measure()
        if config.tune_denoiser:
            backbone.denoiser.requires_grad_(True)
        self.losses = train(
            model,
            loss,
            steps=config.steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=seed,
            work_dir=work_dir,
            label=f"fitting {self.name} to {self.product}",
            overrides={"tokens": {"learning_rate": config.token_learning_rate, "weight_decay": 0.0}},
        )
        model.requires_grad_(False)
        round_to_half(model)
        self.attention_iou = [before, measure()]

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        plans = [self._plan(request) for request in requests]
        if not plans:
            return
        with torch.no_grad():
            drawn = self._draw(plans)
        for plan, canvas in zip(plans, drawn, strict=True):
            yield self._finish(plan, canvas)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.half().contiguous() for name, tensor in self._fitted().state_dict().items()}
        save_file(state, folder / "model.safetensors")
        write_description(
            folder,
            self.name,
            self.config,
            product=self.product,
            defects=list(self.defects),
            backbone=backbone_metadata(self.backbone),
        )
        (folder / "training.json").write_text(
            json.dumps({"loss": self.losses, "attention_iou": self.attention_iou}) + "\n"
        )

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> "CADiff":
        described = read_description(folder, cls.name)
        check_backbone(folder, described, backbone)
        made = cls(backbone, Config.model_validate(described["config"]), described["product"], described["defects"])
        made.model = Model(backbone, made.config, len(made.defects), seed=0)
        made.model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        made.model.requires_grad_(False).eval()
        return made

    # sampling

    def _draw(self, plans: Sequence["_Plan"]) -> np.ndarray:
        """Canvases in 0 to 255, [B, R, R, 3]."""
        config, backbone = self.config, self.backbone
        trajectory = make_trajectory(backbone.schedule, config.sampling_steps)
        start = config.sampling_steps
        region = to_denoiser(backbone, latent_masks(backbone, [plan.mask for plan in plans]))
        shape = (backbone.latent_channels, backbone.latent_size, backbone.latent_size)
        noise = to_denoiser(backbone, noise_from_seeds([plan.request.seed for plan in plans], shape))
        clean = backbone.encode(to_tensor([plan.image for plan in plans]))

        def normal(level: int) -> Tensor:
            return add_noise(clean, noise, trajectory.alpha_bars[level].expand(len(plans)))

        latents = noise
        if config.start == "normal":
            start = max(1, round(config.start_level * config.sampling_steps))
            latents = normal(start)
        walk = _Walk(self, plans)
        with bf16_inference(backbone.denoiser, self._fitted().control):
            latents = sample(
                latents,
                walk.predict,
                trajectory,
                start=start,
                before_step=(lambda z, level: blend(z, normal(level), region)) if config.paste else None,
                after_step=(lambda z, level: z if level else blend(z, clean, region)) if config.paste else None,
            )
        return to_pixels(backbone.decode(latents))

    def _finish(self, plan: "_Plan", canvas: np.ndarray) -> SyntheticPair:
        request = plan.request
        full = request.normal_image.astype(np.float32)
        full[plan.window.slices] = resize_to_window(canvas, plan.window)
        if self.config.paste:
            image = composite(request.normal_image, full, request.mask, self.config.feather)
        else:
            image = np.clip(np.rint(full), 0, 255).astype(np.uint8)
        facts = {"prompt": self._prompt(plan.defects), "strength": plan.strength}
        return SyntheticPair(request.sample_id, image, request.mask.copy(), None, facts)

    def _plan(self, request: SampleRequest) -> "_Plan":
        names = named_defects(request.defect, self.defects)
        for name in names:
            check_request(dataclasses.replace(request, defect=name), self.defects)
        if len(set(names)) < len(names):
            raise InputError(f"request {request.sample_id}: defect {request.defect!r} names one defect twice")
        check_on_product(request)
        strength = request.strength
        if strength is None:
            strength = draw_strength(request.seed, *self.config.strength_range)
        if not -STRONGEST <= strength <= STRONGEST:
            raise InputError(f"request {request.sample_id}: strength {strength:g}; expected -2 to 2, 1 is unchanged")
        config, resolution = self.config, self.backbone.resolution
        window = choose_window(request.mask, config.canvas, config.context, config.min_side)
        shown = crop_mask(request.mask, window, resolution)
        return _Plan(
            request,
            [self.defects.index(name) for name in names],
            strength,
            window,
            crop_image(request.normal_image, window, resolution),
            shown,
            split_mask(shown, len(names)),
        )

    def _prompt(self, defects: Sequence[int]) -> str:
        anomaly = " and ".join(prompt_words(self.defects[number]) for number in defects)
        return self.config.templates[0].format(context=prompt_words(self.product), anomaly=anomaly)

    def _fitted(self) -> Model:
        if self.model is None:
            raise ValueError("cadiff was not fitted")
        return self.model


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What one request comes to: its defects, its strength, and the window with one mask for each defect."""

    request: SampleRequest
    defects: list[int]
    strength: float
    window: Window
    image: Image
    mask: Mask
    parts: list[Mask]


class _Walk:
    """The noise model of one batch while it is sampled; it remembers which tokens have come into focus."""

    def __init__(self, generator: CADiff, plans: Sequence[_Plan]) -> None:
        config, backbone, model = generator.config, generator.backbone, generator._fitted()
        self.config, self.model, self.control = config, model, generator._attention
        self.side, self.guided = generator._focus_side, config.guidance_scale > 1
        most = max(len(plan.defects) for plan in plans)
        encoded = model.encode([config.templates[0]] * len(plans), [plan.defects for plan in plans])
        self.groups = token_groups(encoded, [anomaly_slots(plan.defects, most) for plan in plans])
        self.text = torch.cat([encoded.states, self._empty(encoded)]) if self.guided else encoded.states
        images = [torch.from_numpy(np.stack([plan.mask for plan in plans]))[:, None].float()]
        self.images = to_denoiser(backbone, torch.cat(images * (1 + self.guided)))
        empty = np.zeros_like(plans[0].mask)
        self.masks = [  # of the defects that come first, second, ... in their requests
            to_denoiser(backbone, latent_masks(backbone, [(*plan.parts, *[empty] * most)[k] for plan in plans]))
            for k in range(most)
        ]
        self.strengths = torch.tensor([plan.strength for plan in plans])
        latched = config.focus_latched
        self.focused = [DelayedFocus(len(plans), config.focus_threshold, latched) for _ in range(most)]

    def predict(self, latents: Tensor, time: Tensor) -> Tensor:
        """The noise at one level. What it sees of the attention decides about the re-weighting of the next level."""
        count = len(latents)
        twice = torch.cat([latents, latents]) if self.guided else latents
        with ExitStack() as asked:
            maps = asked.enter_context(self.control.capture(self._conditional(self.groups), sides={self.side}))
            for k, mask in enumerate(self.masks):
                self._reweight(asked, k, mask)
            times = time.to(latents.device).expand(len(twice))
            noise = self.model.predict(twice, times, self.text, self.images).to(latents.dtype)
        seen = maps.mean(self.side)[:count]
        for k, mask in enumerate(self.masks):
            self.focused[k].update(focus(seen[:, k], resize_mask(mask, self.side)[:, 0]))
        if not self.guided:
            return noise
        return guide(noise[count:], (self.config.guidance_scale, noise[:count]))

    def _reweight(self, asked: ExitStack, k: int, mask: Tensor) -> None:
        others = [other for number, other in enumerate(self.masks) if number != k]
        active = self.focused[k].active
        if not others and not active.any():
            return
        intensity = spatial_weights(mask, self.strengths, active, self.config.masked_focus)

        def weights(side: int) -> Tensor:
            value = intensity(side)
            for other in others:  # where another defect of the image is, this one's token is not read (ours)
                value = value * (1 - resize_mask(other, side) * (1 - resize_mask(mask, side)))
            return self._conditional(value)

        self.model.reweight(asked, self._conditional(self.groups[:, k] > 0), weights)

    def _conditional(self, x: Tensor) -> Tensor:
        """For the whole batch: x for the conditional half, zeros, which ask for nothing, for the other."""
        return torch.cat([x, torch.zeros_like(x)]) if self.guided else x

    def _empty(self, encoded: EncodedPrompts) -> Tensor:
        backbone = self.model.backbone
        return backbone.encode_text([""]).expand(len(encoded.states), -1, -1)


METHOD = CADiff
