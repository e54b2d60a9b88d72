"""SeaS as a generator: one U-Net with its words and its mask branch per product, then pairs and normal images.

The loss stands in `finetune.py` and `alignment.py`, the masks in `mask_branch.py`, the sampling in `drawing.py`.
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
from defect_core.data.augment import AugmentOptions
from defect_core.data.records import GOOD
from defect_core.diffusion.attention import check_text_width, control_attention
from defect_core.diffusion.losses import agreement
from defect_core.diffusion.mask_rules import strongest, threshold
from defect_core.diffusion.schedule import add_noise
from defect_core.diffusion.tokens import ConceptTokens
from defect_core.errors import InputError
from defect_core.generators.base import (
    Example,
    Generator,
    Image,
    SampleRequest,
    SyntheticPair,
    check_request,
    read_description,
    write_description,
)
from defect_core.generators.canvas import Window, choose_window, crop_image, dilate_in_window, resize_to_window
from defect_core.generators.composite import composite
from defect_core.generators.registry import GeneratorConfig
from defect_core.generators.seas.alignment import aligned_sides
from defect_core.generators.seas.config import CAPABILITIES, Config
from defect_core.generators.seas.finetune import Batch, Parts, Words, finetune_loss
from defect_core.generators.seas.mask_branch import (
    branch_loss,
    image_features,
    make_branch,
    watch_features,
)
from defect_core.generators.seas.sampling import Place, clean_latents, draw
from defect_core.generators.views import (
    augmented_views,
    backbone_metadata,
    check_backbone,
    encode_views,
    latent_masks,
    round_to_half,
    to_denoiser,
    to_pixels,
    to_tensor,
)
from defect_core.training.loop import train

EMPTY_MASK_SHARE = 0.005
_CHECK_VIEWS, _CHECK_TIMES = 16, (0.1, 0.3, 0.5)
_AUGMENTATIONS = {
    "rotate_flip": AugmentOptions(rotation=0, scale=0, shift=0, brightness=0, contrast=0, colour=0),
    "none": AugmentOptions(False, False, rotation=0, scale=0, shift=0, brightness=0, contrast=0, colour=0),
    "full": None,
}


class Seas(Generator):
    """The U-Net is tuned as a whole; VAE and text encoder stay frozen, every word of the vocabulary with them."""

    name = "seas"
    capabilities = CAPABILITIES

    def __init__(self, backbone: Backbone, config: Config, product: str, defects: Sequence[str], words: Words) -> None:
        self.backbone, self.config, self.product, self.defects = backbone, config, product, tuple(defects)
        self.words = words
        self.branch = make_branch(backbone, config.mask_width, config.mask_layers, config.refinement == "paper")
        self.training: dict[str, list[float]] = {}
        self._control = control_attention(backbone.denoiser)

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: Backbone) -> "Seas":
        assert isinstance(config, Config)
        _check_encoder(backbone)
        check_text_width(backbone.denoiser, backbone.text_encoder.config.hidden_size)
        return cls(backbone, config, "", (), Words.begin(backbone, (), config))

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        defective = [example for example in examples if example.mask is not None]
        good = [example for example in examples if example.mask is None]
        for what, found in (("defect", defective), ("good", good)):
            if not found:
                raise InputError(f"seas: no {what} examples to learn from; expected at least one")
        self.product = defective[0].product
        self.defects = tuple(sorted({example.defect for example in defective}))
        self.words = Words.begin(self.backbone, self.defects, self.config).to(self.backbone.device)
        views = _Views(self.backbone, self.config, defective, good, self.defects, seed)
        self._tune(views, work_dir / "unet", seed)
        self._tune_branch(views, work_dir / "mask", seed)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        if not requests:
            return
        kinds = [self._kinds(request) for request in requests]
        config, backbone = self.config, self.backbone
        windows = [choose_window(r.mask, config.canvas, config.context, config.min_side) for r in requests]
        canvases = [crop_image(r.normal_image, w, backbone.resolution) for r, w in zip(requests, windows, strict=True)]
        with torch.no_grad():
            states, empty = self.words.encode(backbone, kinds).states, backbone.encode_text([""])
        references = to_denoiser(backbone, to_tensor(canvases))
        place = self._place(requests, windows)
        drawn = draw(backbone, references, states, empty, [r.seed for r in requests], config, self.branch, place)
        images, masks = to_pixels(drawn.images), drawn.masks.float().cpu().numpy()
        if config.adds_difference:
            images -= 127.5  # a difference has no middle grey
        for index, request in enumerate(requests):
            yield self._finish(request, windows[index], images[index], masks[index], kinds[index])

    def generate_normals(self, seeds: Sequence[int], references: Sequence[Image]) -> Iterator[Image]:
        if not references:
            raise InputError("seas: no normal images to begin from; expected at least one")
        config, backbone = self.config, self.backbone
        with torch.no_grad():
            states, empty = self.words.encode(backbone, [()]).states, backbone.encode_text([""])
        for start in range(0, len(seeds), config.batch_size):
            part = seeds[start : start + config.batch_size]
            begun = [references[(start + index) % len(references)] for index in range(len(part))]
            windows = [Window(0, 0, *image.shape[:2]) for image in begun]
            canvases = [crop_image(i, w, backbone.resolution) for i, w in zip(begun, windows, strict=True)]
            texts = states.expand(len(part), -1, -1)
            drawn = draw(backbone, to_denoiser(backbone, to_tensor(canvases)), texts, empty, part, config)
            for window, pixels in zip(windows, to_pixels(drawn.images), strict=True):
                yield np.clip(np.rint(resize_to_window(pixels, window)), 0, 255).astype(np.uint8)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tokens = self.words.tokens.vectors
        for name, state in (
            ("unet", self.backbone.denoiser.state_dict()),
            ("tokens", {name: tokens[name].detach() for name in (GOOD, *self.defects)}),
            ("mask_branch", self.branch.state_dict()),
        ):
            save_file({key: value.half().contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
        facts = {"product": self.product, "defects": list(self.defects)}
        write_description(folder, self.name, self.config, **facts, backbone=backbone_metadata(self.backbone))
        (folder / "training.json").write_text(json.dumps(self.training, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> "Seas":
        described = read_description(folder, cls.name)
        check_backbone(folder, described, backbone)
        config = Config.model_validate(described["config"])
        words = Words(ConceptTokens(load_file(folder / "tokens.safetensors")), config).requires_grad_(False)
        made = cls(backbone, config, described["product"], described["defects"], words.to(backbone.device))
        for network, name in ((backbone.denoiser, "unet"), (made.branch, "mask_branch")):
            state = load_file(folder / f"{name}.safetensors")
            network.load_state_dict({key: value.float() for key, value in state.items()})
            network.requires_grad_(False).eval()
        return made

    # the two stages of training

    def _tune(self, views: "_Views", work_dir: Path, seed: int) -> None:
        config, backbone = self.config, self.backbone
        sides = aligned_sides(backbone.latent_size, self._attention_sides())
        trained = nn.ModuleDict({"denoiser": backbone.denoiser, "words": self.words}).requires_grad_(True)

        def loss(step: int, generator: torch.Generator) -> Tensor:
            batch = views.batch(config.batch_size, len(backbone.schedule), generator)
            return finetune_loss(backbone, self.words, self._control, sides, batch, config).total

        before = self._measure(views, sides, seed)
        losses = train(
            trained,
            loss,
            steps=config.steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=seed,
            work_dir=work_dir,
            label=f"fine-tuning {self.name} on {self.product}",
            overrides={"words": {"learning_rate": config.token_learning_rate, "weight_decay": 0.0}},
        )
        trained.requires_grad_(False)
        round_to_half(trained)
        after = self._measure(views, sides, seed)
        self.training = {"loss": losses, "attention_iou": [before, after]}

    def _tune_branch(self, views: "_Views", work_dir: Path, seed: int) -> None:
        config, backbone = self.config, self.backbone
        with torch.no_grad():
            kinds = [*((name,) for name in self.defects), ()]
            states = self.words.encode(backbone, kinds).states
        last = max(1, round(config.mask_times * len(backbone.schedule)))

        def loss(step: int, generator: torch.Generator) -> Tensor:
            batch = views.batch(config.batch_size, last, generator)
            count = len(batch.defects)
            rows = [self.defects.index(name) for name in batch.defects]
            texts = states[rows + [len(self.defects)] * (len(batch.latents) - count)]
            levels = backbone.schedule[batch.times]
            with torch.no_grad(), watch_features(backbone) as features:
                noised = add_noise(to_denoiser(backbone, batch.latents), to_denoiser(backbone, batch.noise), levels)
                predicted = backbone.denoiser(noised, to_denoiser(backbone, batch.times), texts).sample
                fine = image_features(backbone, clean_latents(noised, predicted, levels)[:count])
            return branch_loss(self.branch, (features[0], features[1]), fine, batch.masks, config.focal_gamma)

        self.branch.requires_grad_(True)
        self.training["mask_loss"] = train(
            self.branch,
            loss,
            steps=config.mask_steps,
            learning_rate=config.mask_learning_rate,
            weight_decay=config.weight_decay,
            seed=seed + 1,
            work_dir=work_dir,
            label=f"training the masks of {self.name} on {self.product}",
        )
        self.branch.requires_grad_(False)
        round_to_half(self.branch)

    def _measure(self, views: "_Views", sides: Sequence[int], seed: int) -> float:
        """How well the anomaly tokens' attention finds the defects: mean IoU (`agreement`), fixed noise."""
        found = []
        count, size = min(_CHECK_VIEWS, len(views.names)), self.config.batch_size
        with torch.no_grad():
            for share in _CHECK_TIMES:
                batch = views.batch(count, 1, torch.Generator().manual_seed(seed))
                time = int(share * len(self.backbone.schedule))
                batch = dataclasses.replace(batch, times=torch.full_like(batch.times, time))
                for start in range(0, count, size):
                    part = batch.part(start, start + size)
                    parts: Parts = finetune_loss(self.backbone, self.words, self._control, sides, part, self.config)
                    side = max(parts.masks)
                    found.append(agreement(parts.maps.anomaly[side], parts.masks[side]))
        return round(float(torch.cat(found).mean()), 4)

    def _attention_sides(self) -> list[int]:
        """Sides of the encoder's cross-attention layers, found by one call."""
        backbone = self.backbone
        shape = (1, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
        with torch.no_grad():
            text = backbone.encode_text([""])
            groups = torch.zeros(1, 1, text.shape[1], device=text.device)
            with self._control.capture(groups) as maps:
                backbone.denoiser(to_denoiser(backbone, torch.zeros(shape)), 0, text)
        return [part.shape[-1] for name, part in maps.layers if name.startswith("down_blocks")]

    # requests

    def _place(self, requests: Sequence[SampleRequest], windows: Sequence[Window]) -> Place | None:
        config, backbone = self.config, self.backbone
        if config.reach is None:
            return None
        near = [
            dilate_in_window(request.mask, window, config.reach, backbone.resolution)
            for request, window in zip(requests, windows, strict=True)
        ]
        with torch.no_grad():
            normal = self.words.encode(backbone, [()]).states
        return Place(to_denoiser(backbone, latent_masks(backbone, near)), normal)

    def _kinds(self, request: SampleRequest) -> tuple[str, ...]:
        """The fitted defects of a request: its own, or those joined by "+"."""
        kinds = (request.defect,) if request.defect in self.defects else tuple(request.defect.split("+"))
        for kind in kinds:
            check_request(dataclasses.replace(request, defect=kind), self.defects)
        return kinds

    def _finish(
        self, request: SampleRequest, window: Window, pixels: np.ndarray, soft: np.ndarray, kinds: tuple[str, ...]
    ) -> SyntheticPair:
        config = self.config
        back, soft = resize_to_window(pixels, window), np.clip(resize_to_window(soft, window), 0, 1)
        near = np.ones(soft.shape, bool)
        if config.reach is not None:
            near = dilate_in_window(request.mask, window, config.reach, self.backbone.resolution)
            soft = soft * near
        mask, rule = threshold(soft, config.mask_threshold), "threshold"
        if not mask.any():  # what lies out of reach comes last, and is no part of it
            mask = strongest(np.where(near, soft, -1), EMPTY_MASK_SHARE) & near
            rule = f"strongest {EMPTY_MASK_SHARE:.1%}"
        full_mask, full_soft = np.zeros(request.mask.shape, bool), np.zeros(request.mask.shape, np.float32)
        full_mask[window.slices], full_soft[window.slices] = mask, soft
        full = request.normal_image.astype(np.float32)
        full[window.slices] = full[window.slices] + back if config.adds_difference else back
        image = np.clip(np.rint(full), 0, 255).astype(np.uint8)
        if config.paste:
            image = composite(request.normal_image, full, full_mask, config.feather)
        facts = {"prompt": self._prompt(kinds), "mask_rule": rule}
        return SyntheticPair(request.sample_id, image, full_mask, full_soft, facts)

    def _prompt(self, kinds: tuple[str, ...]) -> str:
        """The prompt as text; each defect's learned words shown as its name."""
        return self.config.defect_prompt.format(product=f"<{self.product}>", defect=" ".join(f"<{k}>" for k in kinds))


METHOD = Seas


def _check_encoder(backbone: Backbone) -> None:
    """The alignment reads the attention of the U-Net's encoder.

    Raises:
        InputError: it has none.
    """
    control_attention(backbone.denoiser)
    names = [name for name, _ in backbone.denoiser.down_blocks.named_modules()]
    if not any(name.endswith("attn2") for name in names):
        raise InputError(
            "seas: the backbone's U-Net has no cross-attention in its encoder (down_blocks), which the alignment "
            "needs; expected one that has, such as 'embedded' or Stable Diffusion 1.5"
        )


class _Views:
    """Encoded views of defective and good examples, and mixed batches of them."""

    def __init__(
        self,
        backbone: Backbone,
        config: Config,
        defective: Sequence[Example],
        good: Sequence[Example],
        defects: Sequence[str],
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        chosen = [good[i] for i in sorted(rng.permutation(len(good))[: config.normals])]
        shown, options = (config.canvas, config.context, config.min_side), _AUGMENTATIONS[config.augmentation]
        bad = augmented_views(defective, config.variants, *shown, backbone.resolution, rng, options)
        repeats = -(-len(bad) // len(chosen))
        plain = augmented_views(chosen, repeats, *shown, backbone.resolution, rng, options)
        if config.canvas == "local":  # normal images are drawn whole, whatever the canvas of the defects
            plain += augmented_views(chosen, repeats, "whole", *shown[1:], backbone.resolution, rng, options)
        self.names = [view.defect for view in bad]
        self.masks = torch.from_numpy(np.stack([view.mask for view in bad]))[:, None]
        self.defective = encode_views(backbone, bad, defects).latents
        self.good = encode_views(backbone, plain, defects).latents

    def batch(self, size: int, last: int, generator: torch.Generator) -> Batch:
        """`size` defect views and as many good ones, at times below `last`, each with noise of its own."""
        rows = torch.randint(len(self.defective), (size,), generator=generator)
        others = torch.randint(len(self.good), (size,), generator=generator)
        latents = torch.cat([self.defective[rows], self.good[others]])
        times = torch.randint(last, (2 * size,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        return Batch(latents, self.masks[rows].float(), [self.names[int(row)] for row in rows], noise, times)
