"""From a plan to requests: which normal image, which real example, where the mask is placed.

A request is decided by (base seed, product, generator, defect, index) alone. So a run that was killed, or divided into
shards, makes the same requests.
"""

import math
import weakref
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from defect_core.data.foreground import find_foreground
from defect_core.data.masks import touches_border
from defect_core.data.placement import Placement, place_defect
from defect_core.data.placement_rules import MAX_KERNEL_EXAMPLES, Scene, place_by_rule
from defect_core.data.placement_settings import ANY, PlacementRule, rule_for
from defect_core.errors import InputError
from defect_core.generators.base import Example, Image, Mask, SampleRequest
from defect_core.seeds import derive_seed
from defect_core.synthesis.config import BatchSettings

# A mask that touches the border is scaled with its image. Its shape is roughly kept if the logarithms of the two
# aspect ratios differ by at most this much.
MAX_LOG_ASPECT_DIFFERENCE = 0.2
# The choice is among at least this many normal images, so that pairs do not repeat a few backgrounds.
MIN_BACKGROUNDS = 32
# If an example does not fit into the region of a normal image, other pairs of both are tried.
MAX_PLACEMENT_ATTEMPTS = 24


class SynthesisPlan(BatchSettings):
    """What a synthetic set consists of: the settings of `synthesize`, resolved for one product and generator."""

    product: str
    """Product that the pairs show."""
    generator: str
    """Name of the generator."""
    base_seed: int
    """Seed from which the seeds of all samples are derived."""
    per_defect: int | dict[str, int]
    """Accepted pairs of every defect type, or of each by name."""
    model_digest: str = ""
    """Digest of the generator's folder, for the manifest."""
    placement: dict[str, PlacementRule] = Field(default_factory=dict)
    """Where defects may be placed, by defect type; `*` for all others."""

    def target_count(self, defect: str) -> int:
        """Return the number of accepted pairs of a defect type."""
        return self.per_defect if isinstance(self.per_defect, int) else self.per_defect[defect]

    def max_requests(self, defect: str) -> int:
        """Return the largest number of requests for a defect type."""
        return math.ceil(self.target_count(defect) * self.max_attempts)


def regeneration_seed(seed: int, regeneration: int) -> int:
    """Return the base seed of a set: the project's seed at first, another one for each regeneration."""
    return seed if regeneration == 0 else derive_seed(seed, "", "", "draw", regeneration)


def normal_examples(plan: SynthesisPlan, examples: Sequence[Example]) -> list[Example]:
    """Return the normal images of the plan's product.

    Raises:
        InputError: there is none.
    """
    normals = [example for example in examples if example.mask is None and example.product == plan.product]
    if not normals:
        raise InputError(f"product {plan.product}: has no normal training images to generate defects on")
    return normals


def defect_types(plan: SynthesisPlan, examples: Sequence[Example]) -> list[str]:
    """Return the defect types that are generated, sorted.

    Raises:
        InputError: the product has no normal images.
    """
    normal_examples(plan, examples)
    return sorted({example.defect for example in examples if example.mask is not None})


def make_request(
    plan: SynthesisPlan, defect: str, index: int, normals: Sequence[Example], sources: Sequence[Example]
) -> tuple[SampleRequest, str]:
    """Return the request with this index for a defect type, and the name of its normal image.

    A normal image and a real example are chosen at random. The example's mask is placed where the normal image looks
    like the surroundings of the example. If the mask touches the border, a normal image of about the same shape is
    preferred, because such a mask is scaled with its image (see `place_defect`). A region or a rule for the defect
    type limits the position, rotation and size (see `place_by_rule`).

    Args:
        plan: what the set consists of.
        defect: defect type.
        index: number of the request within its defect type, from 0.
        normals: normal images of the product; at least one.
        sources: real examples of the defect type, with masks; at least one.

    Raises:
        InputError: no example of the defect type fits into the regions.
    """
    seed = derive_seed(plan.base_seed, plan.product, plan.generator, defect, index)
    rng = np.random.default_rng(seed)
    normal = normals[int(rng.integers(len(normals)))]
    source = sources[int(rng.integers(len(sources)))]
    if source.mask is None:
        raise ValueError(f"{source.name}: expected an example with a mask")
    if touches_border(source.mask) and _log_aspect_difference(normal, source) > MAX_LOG_ASPECT_DIFFERENCE:
        smallest = sorted(_log_aspect_difference(each, source) for each in normals)[:MIN_BACKGROUNDS]
        limit = max(MAX_LOG_ASPECT_DIFFERENCE, smallest[-1])
        candidates = [each for each in normals if _log_aspect_difference(each, source) <= limit]
        normal = candidates[int(rng.integers(len(candidates)))]
    rule, allowed = rule_for(plan.placement, defect), _region(normal, defect)
    if rule is None and allowed is None:
        placement = place_defect(source.image, source.mask, normal.image, rng)
    else:
        normal, source, placement = _place_by_rule(plan, defect, rule, rng, (normal, source), normals, sources)
    request = SampleRequest(
        sample_id=f"{defect}-{index:05d}",
        product=plan.product,
        defect=defect,
        seed=seed,
        normal_image=normal.image,
        mask=placement.mask,
        source=source,
        warped=placement.warped,
        allowed=_region(normal, defect),
    )
    return request, normal.name


def batch_indices(plan: SynthesisPlan, defect: str, index: int) -> range:
    """Return the indices of a defect type that are sampled together with `index`.

    The seed of a sample decides it up to rounding. Rounding may depend on the size of the batch.
    """
    start = index - index % plan.batch_size
    return range(start, min(start + plan.batch_size, plan.max_requests(defect)))


def _region(normal: Example, defect: str) -> Mask | None:
    return normal.regions.get(defect, normal.regions.get(ANY))


def _place_by_rule(
    plan: SynthesisPlan,
    defect: str,
    rule: PlacementRule | None,
    rng: np.random.Generator,
    first: tuple[Example, Example],
    normals: Sequence[Example],
    sources: Sequence[Example],
) -> tuple[Example, Example, Placement]:
    """Return a normal image, an example and its placement; the first pair if it fits, else other random pairs."""
    scenes: Sequence[Scene] = ()
    if rule is not None and rule.mode == "like_examples":
        scenes = _scenes(sources, rng)
    normal, source = first
    for _ in range(MAX_PLACEMENT_ATTEMPTS):
        placement = place_by_rule(_scene(source), _scene(normal), rng, rule, _region(normal, defect), scenes)
        if placement is not None:
            return normal, source, placement
        normal = normals[int(rng.integers(len(normals)))]
        source = sources[int(rng.integers(len(sources)))]
    where = f"params.yaml: placement.{plan.product}.{defect}"
    raise InputError(
        f"{where}: no mask of an example fits into the region, such as that of {first[1].name} on {first[0].name}; "
        "make the region larger, or allow a smaller scale or more rotation"
    )


def _scenes(sources: Sequence[Example], rng: np.random.Generator) -> list[Scene]:
    """Return examples for the mode `like_examples`, at most `MAX_KERNEL_EXAMPLES` at random."""
    masked = [source for source in sources if source.mask is not None]
    if len(masked) > MAX_KERNEL_EXAMPLES:
        masked = [masked[int(index)] for index in rng.choice(len(masked), MAX_KERNEL_EXAMPLES, replace=False)]
    return [_scene(source) for source in masked]


_MAX_FOREGROUNDS = 64
_foregrounds: dict[int, tuple[weakref.ref[Image], Mask]] = {}


def _scene(example: Example) -> Scene:
    """Return the scene of an image; the foregrounds of the last images are kept."""
    entry = _foregrounds.get(id(example.image))
    if entry is None or entry[0]() is not example.image:
        if len(_foregrounds) >= _MAX_FOREGROUNDS:
            _foregrounds.clear()
        entry = (weakref.ref(example.image), find_foreground(example.image))
        _foregrounds[id(example.image)] = entry
    return Scene(example.image, entry[1], example.mask)


def _log_aspect_difference(one: Example, other: Example) -> float:
    """Return the absolute difference of the logarithms of the aspect ratios of two images."""
    ratios = [each.image.shape[0] / each.image.shape[1] for each in (one, other)]
    return float(abs(np.log(ratios[0] / ratios[1])))
