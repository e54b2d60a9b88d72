"""DefectDiffu as a generator: one transformer learns a whole catalogue, then answers for any product with any defect.

The network stands in `model.py`, the losses in `training.py`, guidance and sampling in `guidance.py`; this file turns
real examples into training samples and requests into pairs.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from defect_core.backbones import Backbone
from defect_core.data.masks import downsample_mask
from defect_core.diffusion.mask_rules import isodata
from defect_core.diffusion.samplers import NoiseStream
from defect_core.errors import InputError
from defect_core.generators.base import (
    Example,
    Generator,
    Image,
    SampleRequest,
    SyntheticPair,
    read_description,
    write_description,
)
from defect_core.generators.canvas import (
    Window,
    choose_window,
    crop_image,
    crop_mask,
    dilate_in_window,
    resize_to_window,
)
from defect_core.generators.composite import composite
from defect_core.generators.defectdiffu.ancestral import Chain
from defect_core.generators.defectdiffu.config import CAPABILITIES, Config
from defect_core.generators.defectdiffu.folder import ADDED, Transformer, load_transformer, make_chain, rebuild
from defect_core.generators.defectdiffu.guidance import branches, draw
from defect_core.generators.defectdiffu.text import (
    EMPTY,
    GOOD,
    ClipSentences,
    Conditions,
    HashedWords,
    SentenceEncoder,
    encode_pairs,
    sentences,
)
from defect_core.generators.defectdiffu.training import Weights, drop_words, total_loss
from defect_core.generators.registry import GeneratorConfig
from defect_core.generators.views import (
    View,
    augmented_views,
    backbone_metadata,
    check_backbone,
    round_to_half,
    to_pixels,
    to_tensor,
)
from defect_core.training.loop import bf16_inference, train

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


class DefectDiffu(Generator):
    """One transformer for the catalogue; the backbone gives the autoencoder, its denoiser is not used."""

    name = "defectdiffu"
    capabilities = CAPABILITIES

    def __init__(
        self,
        backbone: Backbone,
        config: Config,
        transformer: Transformer,
        encoder: SentenceEncoder,
        products: Sequence[str],
        defects: Sequence[str],
    ) -> None:
        self.backbone, self.config, self.encoder = backbone, config, encoder
        self.products, self.defects = tuple(products), tuple(defects)
        self.transformer, self.model, self.chain = transformer, transformer.model.to(backbone.device), transformer.chain
        self.model.gradient_checkpointing = config.gradient_checkpointing
        self.losses: list[float] = []
        if self.model.channels != backbone.latent_channels:
            raise InputError(
                f"defectdiffu: dit {config.dit!r} reads latents of {self.model.channels} channels, the backbone "
                f"{backbone.name!r} makes {backbone.latent_channels}; expected the same number"
            )

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: Backbone) -> "DefectDiffu":
        assert isinstance(config, Config)
        encoder = _text_encoder(config.text)
        return cls(backbone, config, load_transformer(config.dit, encoder.width, config.split), encoder, (), ())

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Learn from the examples of one product or of many; a product may have no defects at all."""
        if not any(example.mask is not None for example in examples):
            raise InputError("defectdiffu: no defect examples to learn from; expected at least one")
        self.products = tuple(sorted({example.product for example in examples}))
        self.defects = tuple(sorted({example.defect for example in examples if example.mask is not None}))
        config, model, bank = self.config, self.model, self._bank(examples, seed)
        table = self._condition_table()
        weights = Weights(
            config.mask_weight, config.variance_weight, config.alpha, config.weight_cap, config.detach_ratio
        )
        device = next(model.parameters()).device

        def loss(step: int, generator: torch.Generator) -> Tensor:
            rows = bank.choose(config.batch_size, config.defect_share, generator)
            words = [bank.pairs[row] for row in rows.tolist()]
            told = drop_words(words, config.drop_product, config.drop_defect, generator)
            times = torch.randint(self._start_step(self.chain), rows.shape, generator=generator)
            latents = bank.latents[rows]
            noise = torch.randn(latents.shape, generator=generator)
            inputs = [part.to(device) for part in (latents, bank.masks[rows], bank.mask_latents[rows])]
            conditions = table.of(told).to(inputs[0])
            shown = torch.rand(len(told), generator=generator) < config.focus_share
            shown &= torch.tensor([defect != GOOD for _, defect in told])
            region = inputs[1] * shown.to(inputs[1]).view(-1, 1, 1, 1)
            return total_loss(
                model, self.chain, *inputs, conditions, times.to(device), noise.to(device), weights, region
            )

        model.requires_grad_(True)
        self.losses = train(
            model,
            loss,
            steps=config.steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=seed,
            work_dir=work_dir,
            label=f"training {self.name} on {', '.join(self.products)}",
            overrides={part: {"learning_rate": config.added_learning_rate} for part in ADDED},
        )
        model.requires_grad_(False)
        round_to_half(model)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        for request in requests:
            self._check(request)
        if not requests:
            return
        windows = [self._window(request) for request in requests]
        strengths = [self.strength_of(request) for request in requests]
        canvases = [
            crop_image(request.normal_image, window, self.resolution)
            for request, window in zip(requests, windows, strict=True)
        ]
        pictures, masks = self._draw(canvases, requests, windows, strengths)
        for index, request in enumerate(requests):
            yield self._finish(request, windows[index], pictures[index], masks[index], strengths[index])

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: value.half().contiguous() for key, value in sorted(self.model.state_dict().items())}
        save_file(state, folder / "transformer.safetensors")
        config = {key: value for key, value in self.model.dit.config.items() if key != "_name_or_path"}
        write_description(
            folder,
            self.name,
            self.config,
            products=list(self.products),
            defects=list(self.defects),
            backbone=backbone_metadata(self.backbone),
            dit={
                "config": config,
                "schedule": self.transformer.schedule,
                "split": list(self.model.split),
                "digest": self.transformer.digest,
            },
        )
        (folder / "training.json").write_text(json.dumps({"loss": self.losses}) + "\n")

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> "DefectDiffu":
        described = read_description(folder, cls.name)
        check_backbone(folder, described, backbone)
        config, dit = Config.model_validate(described["config"]), described["dit"]
        model = rebuild(dit["config"], load_file(folder / "transformer.safetensors"), tuple(dit["split"]))
        transformer = Transformer(model, make_chain(dit["schedule"]), dit["schedule"], dit["digest"])
        encoder = _text_encoder(config.text)
        return cls(backbone, config, transformer, encoder, described["products"], described["defects"])

    @property
    def latent_size(self) -> int:
        """Side of the transformer's latents."""
        return int(self.model.dit.config.sample_size)

    @property
    def resolution(self) -> int:
        """Side in pixels of the canvas: the transformer's latents through the backbone's autoencoder."""
        return self.latent_size * (self.backbone.resolution // self.backbone.latent_size)

    @property
    def adds_difference(self) -> bool:
        """Whether the defect is the difference of two walks, added to the normal image (see `Config.residual`)."""
        return self.config.residual and self.config.paste and self.config.start == "normal"

    def strength_of(self, request: SampleRequest) -> float:
        """w_d of a request: what it asks for, else drawn from the configured range by its seed."""
        if request.strength is not None:
            return float(request.strength)
        return round(float(np.random.default_rng([request.seed, 1]).uniform(*self.config.strength_range)), 4)

    def _start_step(self, chain: Chain) -> int:
        """How many of a chain's steps the walk takes; noisier ones are never asked for and not trained either."""
        return chain.steps if self.config.start == "noise" else max(1, round(self.config.start_level * chain.steps))

    # training

    def _bank(self, examples: Sequence[Example], seed: int) -> "_Bank":
        config, rng = self.config, np.random.default_rng(seed)
        views: list[View] = []
        pairs: list[tuple[str, str]] = []
        for example in examples:
            count = config.good_variants if example.mask is None else config.variants
            views += augmented_views(
                [example], count, config.canvas, config.context, config.min_side, self.resolution, rng
            )
            pairs += [(example.product, GOOD if example.mask is None else example.defect)] * count
        masks = np.stack([downsample_mask(view.mask, self.latent_size, "max") for view in views])
        pictures = [np.repeat(view.mask[..., None], 3, -1).astype(np.uint8) * 255 for view in views]
        return _Bank(
            self._encode([view.image for view in views]),
            torch.from_numpy(masks).float()[:, None],
            self._encode(pictures),
            pairs,
        )

    def _encode(self, images: Sequence[Image]) -> Tensor:
        with torch.no_grad():
            parts = [self.backbone.encode(to_tensor(images[i : i + 16])).cpu() for i in range(0, len(images), 16)]
        return torch.cat(parts).float()

    def _condition_table(self) -> "_Table":
        pairs = [(product, defect) for product in (EMPTY, *self.products) for defect in (GOOD, *self.defects)]
        return _Table({pair: row for row, pair in enumerate(pairs)}, encode_pairs(self.encoder, pairs))

    # sampling

    def _draw(
        self,
        canvases: Sequence[Image],
        requests: Sequence[SampleRequest],
        windows: Sequence[Window],
        strengths: Sequence[float],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Canvases [B, R, R, 3] in 0 to 255, and the masks' pictures as luminance [B, R, R] in 0 to 1.

        If `adds_difference`, not the canvases but what strength changed in them.
        """
        config, count = self.config, len(requests)
        if self.adds_difference:
            canvases, requests, windows = ([*given, *given] for given in (canvases, requests, windows))
            strengths = [*strengths, *[0.0] * count]
        asked = [branches(request.product, request.defect, config.guidance) for request in requests]
        pairs = [names[part] for part in range(len(asked[0])) for names in asked]
        chain = self.chain.respaced(config.sampling_steps)
        start = self._start_step(chain)
        clean = None if config.start == "noise" else self._encode(canvases).to(self.backbone.device)
        shape = (self.model.channels, self.latent_size, self.latent_size)
        like = torch.empty(0, device=next(self.model.parameters()).device)
        conditions = encode_pairs(self.encoder, pairs).to(like)
        with bf16_inference(self.model):
            drawn = draw(
                self.model,
                chain,
                clean,
                start,
                NoiseStream([request.seed for request in requests], shape, like),
                conditions,
                config.product_scale,
                torch.tensor(strengths),
                max(1, round(config.mask_share * chain.steps)),
                self._regions(requests, windows).to(like),
            )
        with torch.no_grad():
            pictures, masks = (to_pixels(self.backbone.decode(latents)) for latents in drawn)
        if self.adds_difference:
            pictures = pictures[:count] - pictures[count:]
        return pictures, masks[:count] @ _LUMINANCE / 255

    def _regions(self, requests: Sequence[SampleRequest], windows: Sequence[Window]) -> Tensor:
        """The requested masks on the latents' grid, {0, 1} [B, 1, h, w]; zeros where none is asked for."""
        regions = np.zeros((len(requests), 1, self.latent_size, self.latent_size), np.float32)
        for index, (request, window) in enumerate(zip(requests, windows, strict=True)):
            if request.mask is not None and self.config.focus_share > 0:
                shown = crop_mask(request.mask, window, self.resolution)
                regions[index] = downsample_mask(shown, self.latent_size, "max")
        return torch.from_numpy(regions)

    def _finish(
        self, request: SampleRequest, window: Window, picture: np.ndarray, soft: np.ndarray, strength: float
    ) -> SyntheticPair:
        facts = {"prompt": sentences(request.product, request.defect)[2], "strength": strength, "mask": "predicted"}
        local_soft = np.clip(resize_to_window(soft, window), 0, 1)
        mask = self._mask_of(local_soft)
        if mask is not None and request.mask is not None and self.config.reach is not None:
            mask &= dilate_in_window(request.mask, window, self.config.reach, self.resolution)
        if mask is None or not mask.any():
            facts["mask"] = "requested: the predicted one has no contrast or lies elsewhere"
            mask = np.ones(local_soft.shape, bool) if request.mask is None else request.mask[window.slices].copy()
        shape = request.normal_image.shape[:2]
        full_mask, full_soft = np.zeros(shape, bool), np.zeros(shape, np.float32)
        full_mask[window.slices], full_soft[window.slices] = mask, local_soft
        full = request.normal_image.astype(np.float32)
        drawn = resize_to_window(picture, window)
        full[window.slices] = full[window.slices] + drawn if self.adds_difference else drawn
        if self.config.paste:
            image = composite(request.normal_image, full, full_mask, self.config.feather)
        else:
            image = np.clip(np.rint(full), 0, 255).astype(np.uint8)
        return SyntheticPair(request.sample_id, image, full_mask, full_soft, facts)

    def _mask_of(self, soft: np.ndarray) -> np.ndarray | None:
        """The mask by the iterative threshold of section 3.4; None where its two classes hardly differ (ours).

        The threshold alone would find a defect in any picture, also in one without.
        """
        mask = soft >= isodata(soft)
        if mask.all() or not mask.any():
            return None
        contrast = float(soft[mask].mean() - soft[~mask].mean())
        return mask if contrast >= self.config.mask_contrast else None

    def _window(self, request: SampleRequest) -> Window:
        if request.mask is None:
            return Window(0, 0, *request.normal_image.shape[:2])
        return choose_window(request.mask, self.config.canvas, self.config.context, self.config.min_side)

    def _check(self, request: SampleRequest) -> None:
        """Refuse what was not learned; any learned defect may be asked for on any learned product.

        Raises:
            InputError: unknown product or defect, no normal image, or a mask that does not fit it.
        """
        for kind, name, known in (
            ("defect", request.defect, self.defects),
            ("product", request.product, self.products),
        ):
            if name not in known:
                raise InputError(
                    f"request {request.sample_id}: {kind} {name!r} was not fitted; expected {' or '.join(known)}"
                )
        if request.normal_image is None:
            raise InputError(f"request {request.sample_id}: expected a normal image")
        if request.mask is None:
            return
        if request.mask.shape != request.normal_image.shape[:2]:
            raise InputError(
                f"request {request.sample_id}: mask is {request.mask.shape}, image {request.normal_image.shape[:2]}; "
                "expected the same size"
            )
        if not request.mask.any():
            raise InputError(f"request {request.sample_id}: the mask is empty; expected at least one defect pixel")


class _Bank(NamedTuple):
    """Encoded views on the CPU, with the words of each."""

    latents: Tensor
    masks: Tensor
    mask_latents: Tensor
    pairs: list[tuple[str, str]]

    def choose(self, count: int, defect_share: float, generator: torch.Generator) -> Tensor:
        """Rows of a batch, int64 [count]: defects and products evenly, however many images each has."""
        cells: dict[tuple[str, str], list[int]] = {}
        for row, pair in enumerate(self.pairs):
            cells.setdefault(pair, []).append(row)
        kinds = [[rows for pair, rows in cells.items() if (pair[1] == GOOD) == good] for good in (True, False)]
        lots = torch.rand((count, 3), generator=generator, dtype=torch.float64).tolist()
        chosen = []
        for which, cell, row in lots:
            group = kinds[which < defect_share] or kinds[which >= defect_share]
            rows = group[int(cell * len(group))]
            chosen.append(rows[int(row * len(rows))])
        return torch.tensor(chosen)


class _Table(NamedTuple):
    """Condition vectors of every pair of words that training can ask for."""

    rows: dict[tuple[str, str], int]
    vectors: Conditions

    def of(self, pairs: Sequence[tuple[str, str]]) -> Conditions:
        chosen = [self.rows[pair] for pair in pairs]
        return Conditions(*(part[chosen] for part in self.vectors))


def _text_encoder(name: str) -> SentenceEncoder:
    return HashedWords() if name == "hashed" else ClipSentences(Path(name))


METHOD = DefectDiffu
