"""The generator CADiff: tokens and a mask-controlled branch per product; defects with a chosen intensity.

Training is in `training.py`, sampling in `sampling.py`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import attention_sides, check_text_width, control_attention
from defect_core.errors import InputError
from defect_core.generators.base import Example, SampleRequest, SyntheticPair, check_request
from defect_core.generators.cadiff.attention_reweighting import sample_strength
from defect_core.generators.cadiff.composition import split_defect_names, split_mask
from defect_core.generators.cadiff.config import CAPABILITIES, MAX_STRENGTH, CADiffConfig
from defect_core.generators.cadiff.model import CADiffModel
from defect_core.generators.cadiff.sampling import SamplePlan, sample_canvases
from defect_core.generators.cadiff.training import TrainingViews, train_model
from defect_core.generators.canvas import choose_window, crop_image, crop_mask, resize_to_window
from defect_core.generators.composite import composite
from defect_core.generators.trained import SavedGenerator, TrainedGenerator, check_on_product, load_frozen
from defect_core.generators.views import prompt_words


class CADiff(TrainedGenerator[CADiffConfig]):
    """CADiff (Tong et al. 2026): one context token, one anomaly token per defect and one control branch per product."""

    name = "cadiff"
    capabilities = CAPABILITIES
    config_class = CADiffConfig

    def __init__(
        self, backbone: Backbone, config: CADiffConfig, product: str = "", defects: Sequence[str] = ()
    ) -> None:
        super().__init__(backbone, config)
        self.product, self.defects = product, tuple(defects)
        # The class declares what the default settings do. An instance without `paste` keeps no background.
        self.capabilities = dataclasses.replace(CAPABILITIES, keeps_background=config.paste)
        self.model: CADiffModel | None = None
        control_attention(backbone.denoiser)
        check_text_width(backbone.denoiser, backbone.text_encoder.config.hidden_size)
        sides = attention_sides(backbone.denoiser, backbone.latent_size)
        for side in config.loss_sides:
            if side not in sides:
                raise InputError(
                    f"cadiff: loss_sides names {side}, but the backbone's cross-attention has the sides "
                    f"{', '.join(map(str, sorted(sides)))}; expected some of these"
                )
        self._focus_side = min(sides, key=lambda side: (abs(side - config.focus_side), side))

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Train tokens, control branch and, with `tune_denoiser`, the U-Net; see `Generator.fit`.

        Raises:
            InputError: no defect example.
        """
        defective = self.defective_examples(examples)
        normal = [example for example in examples if example.mask is None]
        self.product = defective[0].product
        self.defects = tuple(sorted({example.defect for example in defective}))
        self._check_combinations()
        views = TrainingViews(self.backbone, self.config, defective, normal, self.defects, seed)
        self.model = CADiffModel(self.backbone, self.config, len(self.defects), seed)
        label = f"fitting {self.name} to {self.product}"
        self.training = train_model(self.model, views, self._focus_side, seed, work_dir, label)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request, with the requested mask; `a+b` generates two defects in parts of the mask."""
        plans = [self._plan(request) for request in requests]
        if not plans:
            return
        for plan, canvas in zip(plans, sample_canvases(self._fitted_model(), plans, self._focus_side), strict=True):
            yield self._make_pair(plan, canvas)

    def describe(self) -> dict[str, Any]:
        """Return product and defects."""
        return {"product": self.product, "defects": list(self.defects)}

    def state_dicts(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the weights of the model; they include the U-Net with `tune_denoiser`."""
        return {"model": self._fitted_model().state_dict()}

    @classmethod
    def restore(cls, backbone: Backbone, config: CADiffConfig, saved: SavedGenerator) -> "CADiff":
        """Return the fitted generator from a saved folder."""
        generator = cls(backbone, config, saved.description["product"], saved.description["defects"])
        generator.model = CADiffModel(backbone, config, len(generator.defects), seed=0)
        load_frozen(generator.model, saved.state_dict("model"))
        return generator

    def _check_combinations(self) -> None:
        """Check that the second defect of each combination on this product is one of its defects."""
        for first, second in self.config.combine.items():
            if first in self.defects and second not in self.defects:
                raise InputError(
                    f"cadiff: combine: {first} names {second!r}, which {self.product} does not have; "
                    f"expected one of {', '.join(self.defects)}"
                )

    def _plan(self, request: SampleRequest) -> SamplePlan:
        """Return everything that sampling needs for a request.

        Raises:
            InputError: the request cannot be answered.
        """
        names = split_defect_names(request.defect, self.defects)
        if len(names) == 1 and names[0] in self.config.combine:
            names.append(self.config.combine[names[0]])
        checked, *_ = [check_request(dataclasses.replace(request, defect=name), self.defects) for name in names]
        if len(set(names)) < len(names):
            raise InputError(f"request {request.sample_id}: defect {request.defect!r} names one defect twice")
        check_on_product(checked)
        config, resolution = self.config, self.backbone.resolution
        window = choose_window(checked.mask, config.canvas, config.context, config.min_side)
        mask = crop_mask(checked.mask, window, resolution)
        return SamplePlan(
            checked,
            [self.defects.index(name) for name in names],
            self._strengths(request, names),
            window,
            crop_image(checked.normal_image, window, resolution),
            mask,
            split_mask(mask, len(names)),
        )

    def _strengths(self, request: SampleRequest, names: Sequence[str]) -> list[float]:
        """Return the intensity of each defect: the requested one, or one from the range of its defect type."""
        if request.strength is not None:
            if not -MAX_STRENGTH <= request.strength <= MAX_STRENGTH:
                raise InputError(
                    f"request {request.sample_id}: strength {request.strength:g}; expected -2 to 2, 1 is unchanged"
                )
            return [request.strength] * len(names)
        ranges = [self.config.strength_ranges.get(name, self.config.strength_range) for name in names]
        return [sample_strength(request.seed, *limits, number) for number, limits in enumerate(ranges)]

    def _make_pair(self, plan: SamplePlan, canvas: NDArray[np.floating]) -> SyntheticPair:
        """Return the pair of one request from its canvas, [R, R, 3] in 0 to 255."""
        request = plan.request
        full = request.normal_image.astype(np.float32)
        full[plan.window.slices] = resize_to_window(canvas, plan.window)
        if self.config.paste:
            image = composite(request.normal_image, full, request.mask, self.config.feather)
        else:
            image = np.clip(np.rint(full), 0, 255).astype(np.uint8)
        metadata: dict[str, Any] = {"prompt": self._prompt_text(plan.defects), "strength": plan.strengths[0]}
        if len(plan.defects) > 1:
            names = [self.defects[index] for index in plan.defects]
            metadata["strengths"] = dict(zip(names, plan.strengths, strict=True))
        return SyntheticPair(request.sample_id, image, request.mask.copy(), None, metadata)

    def _prompt_text(self, defects: Sequence[int]) -> str:
        """Return the prompt as text, with the names of product and defects."""
        anomaly = " and ".join(prompt_words(self.defects[index]) for index in defects)
        return self.config.templates[0].format(context=prompt_words(self.product), anomaly=anomaly)

    def _fitted_model(self) -> CADiffModel:
        if self.model is None:
            raise ValueError("cadiff: the generator is not fitted; call fit or load first")
        return self.model


GENERATOR = CADiff
