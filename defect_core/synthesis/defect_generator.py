"""The generator of the Python API: a method together with the real examples that its requests are made from."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defect_core.data.layouts.ingest import ingest_source
from defect_core.data.records import (
    GOOD,
    Record,
    load_image,
    load_mask,
    pixel_digest,
    record_rows,
    save_png,
    write_records,
)
from defect_core.errors import InputError
from defect_core.generators.base import (
    Example,
    Generator,
    Image,
    Mask,
    SampleRequest,
    SyntheticPair,
    read_description,
    saved_generator_name,
)
from defect_core.generators.registry import (
    Capabilities,
    generator_capabilities,
    generator_class,
    generator_config,
)
from defect_core.seeds import derive_seed
from defect_core.synthesis.requests import SynthesisPlan, make_request

if TYPE_CHECKING:
    from defect_core.backbones.load import Backbone

EXAMPLES_FOLDER = "examples"
RECORDS_FILE = "records.parquet"
# Normal images that are saved with a generator, so that it can generate without being given any.
MAX_SAVED_NORMALS = 16


class DefectGenerator:
    """A generator that places its own masks.

    Attributes:
        method: the generator that does the work.
        examples: real examples it was fitted on; requests take masks and appearance from them.
    """

    def __init__(self, method: Generator, examples: Sequence[Example] = ()) -> None:
        self.method = method
        self.examples = list(examples)

    @property
    def name(self) -> str:
        """Name of the method, such as `seas`."""
        return self.method.name

    @property
    def capabilities(self) -> Capabilities:
        """What the method declares about itself."""
        return generator_capabilities(self.name)

    @property
    def defects(self) -> list[str]:
        """Defect types that it can generate, sorted."""
        return sorted({example.defect for example in self.examples if example.mask is not None})

    def fit(self, examples: Sequence[Example], work_dir: str | Path | None = None, seed: int = 0) -> "DefectGenerator":
        """Learn from real examples and return itself.

        Args:
            examples: normal and defective examples of one product (see `read_examples`).
            work_dir: folder for checkpoints. An interrupted fit continues there. None: a temporary folder.
            seed: the only source of randomness.

        Raises:
            InputError: the examples lack something that the method needs, such as a defect.
        """
        if work_dir is None:
            with tempfile.TemporaryDirectory() as temporary:
                self.method.fit(examples, Path(temporary), seed)
        else:
            self.method.fit(examples, Path(work_dir), seed)
        self.examples = list(examples)
        return self

    def generate(
        self,
        defect: str,
        normal_images: Sequence[Image] | None = None,
        n: int = 1,
        seed: int = 0,
        *,
        masks: Sequence[Mask] | None = None,
        batch_size: int = 8,
    ) -> list[SyntheticPair]:
        """Return synthetic pairs.

        The same arguments give the same pairs. A pair does not depend on `n`.

        Args:
            defect: defect type.
            normal_images: uint8 [H, W, 3] each, chosen at random; None: those of the examples.
            n: number of pairs.
            seed: base seed, from which the seed of each pair is derived.
            masks: bool [H, W], one per pair, on `normal_images` in turn. None: the mask of a real example is placed
                where the normal image looks like its surroundings.
            batch_size: pairs that are generated together.

        Raises:
            InputError: an unknown defect type, no normal image, or masks of the wrong number or size.
        """
        if defect not in self.defects:
            known = ", ".join(self.defects) or "a fitted generator"
            raise InputError(f"defect: found {defect!r}; expected {known}")
        requests = self._requests(defect, normal_images, n, seed, masks)
        pairs: list[SyntheticPair] = []
        for start in range(0, n, batch_size):
            pairs += self.method.sample(requests[start : start + batch_size])
        return pairs

    def generate_normals(self, n: int = 1, seed: int = 0) -> Iterator[Image]:
        """Return normal images, uint8 [H, W, 3] each.

        Raises:
            InputError: the method cannot generate normal images, or there is no normal example.
        """
        references = [example.image for example in self._normals()]
        seeds = [derive_seed(seed, self._product, self.name, "normal", index) for index in range(n)]
        return self.method.generate_normals(seeds, references)

    def save(self, folder: str | Path) -> None:
        """Write the generator and the examples that it needs into a folder, for `load_generator`."""
        folder = Path(folder)
        self.method.save(folder)
        target = folder / EXAMPLES_FOLDER
        records: list[Record] = []
        kept = [example for example in self.examples if example.mask is not None]
        kept += [example for example in self.examples if example.mask is None][:MAX_SAVED_NORMALS]
        for number, example in enumerate(kept):
            image, mask = f"images/{number:04d}.png", None
            save_png(example.image, target / image)
            if example.mask is not None:
                mask = f"masks/{number:04d}.png"
                save_png(example.mask, target / mask)
            height, width = example.image.shape[:2]
            digest = pixel_digest(example.image)
            records.append(Record(example.product, example.defect, image, mask, "train", digest, width, height))
        target.mkdir(parents=True, exist_ok=True)
        write_records(records, target / RECORDS_FILE)

    @property
    def _product(self) -> str:
        return self.examples[0].product if self.examples else ""

    def _normals(self) -> list[Example]:
        normals = [example for example in self.examples if example.mask is None]
        if not normals:
            raise InputError("normal_images: none given and none among the examples; expected at least one")
        return normals

    def _requests(
        self,
        defect: str,
        normal_images: Sequence[Image] | None,
        n: int,
        seed: int,
        masks: Sequence[Mask] | None,
    ) -> list[SampleRequest]:
        product = self._product
        if normal_images is None:
            normals = self._normals()
        else:
            normals = [Example(product, GOOD, image, None, str(i)) for i, image in enumerate(normal_images)]
        if not normals:
            raise InputError("normal_images: empty; expected at least one image")
        sources = [example for example in self.examples if example.defect == defect and example.mask is not None]
        plan = SynthesisPlan(product=product, generator=self.name, base_seed=seed, per_defect=n)
        if masks is None:
            return [make_request(plan, defect, index, normals, sources)[0] for index in range(n)]
        if len(masks) != n:
            raise InputError(f"masks: found {len(masks)}; expected one per pair, {n}")
        return [
            SampleRequest(
                sample_id=f"{defect}-{index:05d}",
                product=product,
                defect=defect,
                seed=derive_seed(seed, product, self.name, defect, index),
                normal_image=normals[index % len(normals)].image,
                mask=np.asarray(mask, bool),
            )
            for index, mask in enumerate(masks)
        ]


def create_generator(name: str, backbone: "Backbone | None" = None, **settings: Any) -> DefectGenerator:
    """Return a generator that is not fitted.

    Args:
        name: method, such as `seas` or `crop-paste`.
        backbone: from `load_backbone`; None for methods that use none. `fit` changes the weights of its denoiser.
        settings: settings of the method; its README lists them.

    Raises:
        InputError: an unknown method or setting, or a method that needs a backbone.

    >>> generator = create_generator("crop-paste")
    >>> generator.capabilities.keeps_background
    True
    """
    config = generator_config(name, settings)
    if backbone is None and generator_capabilities(name).uses_backbone:
        raise InputError(f"{name}: expected a backbone, such as load_backbone('embedded')")
    return DefectGenerator(generator_class(name).create(config, backbone))


def load_generator(folder: str | Path, backbone: "Backbone | None" = None) -> DefectGenerator:
    """Return the generator that `DefectGenerator.save` wrote.

    Args:
        folder: the folder.
        backbone: the backbone that it was fitted on; None: loaded by the name that the folder records.

    Raises:
        InputError: the folder has no generator, or the backbone has other weights.
    """
    folder = Path(folder)
    name = saved_generator_name(folder)
    if backbone is None and generator_capabilities(name).uses_backbone:
        from defect_core.backbones.load import load_backbone

        backbone = load_backbone(read_description(folder, name)["backbone"]["name"])
    method = generator_class(name).load(folder, backbone)
    root = folder / EXAMPLES_FOLDER
    if not (root / RECORDS_FILE).is_file():
        raise InputError(f"{folder}: {EXAMPLES_FOLDER}/{RECORDS_FILE} is missing; expected a folder from `save`")
    examples = [
        Example(
            record.product,
            record.defect,
            load_image(root / record.image),
            load_mask(root / record.mask) if record.mask else None,
            record.image,
        )
        for record in record_rows(root / RECORDS_FILE)
    ]
    return DefectGenerator(method, examples)


def read_examples(
    folder: str | Path, product: str | None = None, layout: str = "auto", options: dict[str, Any] | None = None
) -> list[Example]:
    """Return all real images of a product with their masks: normal images first, then by defect type.

    An image with several defect types gives one example per type. Of images with the same pixels the first is read.

    Args:
        folder: folder of the product in a supported layout (see `defect_core.data.layouts`).
        product: name of the product; None: the name of the folder.
        layout: name of the layout; `auto` detects it. `demo`: `folder` names a demo product, which is rendered.
        options: options of the layout.

    Raises:
        InputError: the folder or an image cannot be read, or a defect image has no mask.

    >>> examples = read_examples("weave", layout="demo")
    >>> sorted({example.defect for example in examples})
    ['cut', 'good', 'snag', 'stain']
    """
    if layout == "demo":
        from defect_core.data.demo.render import write_demo_product

        with tempfile.TemporaryDirectory() as temporary:
            write_demo_product(str(folder), Path(temporary), 0)
            return read_examples(temporary, product or str(folder), "mvtec")
    folder = Path(folder)
    product = product or folder.resolve().name
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "raw"
        ingest_source(folder, product, target, layout, options, min_per_defect=1)
        return [
            Example(
                record.product,
                record.defect,
                load_image(target / record.image),
                load_mask(target / record.mask) if record.mask else None,
                record.source,
            )
            for record in record_rows(target / "records.parquet")
        ]
