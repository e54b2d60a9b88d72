"""What the stages load from a project: real images in memory, and the backbone."""

from pathlib import Path
from typing import Any

from defect_core.data.records import Record, load_image, load_mask, read_records
from defect_core.generators.base import Example
from defect_core.generators.registry import generator_capabilities
from defect_core.project.paths import Project


def split_records_of(project: Project, product: str, split: str) -> list[Record]:
    """The records of a product that belong to one side of its split (`train` or `test`)."""
    return [r for r in read_records(project.path(f"data/split/{product}.parquet")) if r.split == split]


def load_examples(project: Project, product: str, split: str) -> list[Example]:
    """All images of one side of the split with their masks, in the order of the records."""
    return [load_example(project, record) for record in split_records_of(project, product, split)]


def load_example(project: Project, record: Record) -> Example:
    """One record's image and mask."""
    raw = project.path(f"data/raw/{record.product}")
    mask = None if record.mask is None else load_mask(raw / record.mask)
    return Example(record.product, record.defect, load_image(raw / record.image), mask, record.image)


def open_backbone(project: Project, product: str, generator: str) -> Any:
    """The product's adapted backbone if there is one, else the project's; None for a generator that uses none.

    A generator fitted on the whole catalogue takes the project's: one adapted to a product would be wrong for the rest.
    """
    capabilities = generator_capabilities(generator)
    if not capabilities.uses_backbone:
        return None
    if project.params.adapt is None or capabilities.scope == "catalogue":
        return open_original(project)
    adapted = open_original(project, project.path(f"data/backbone/{product}"))
    adapted.name = f"{project.params.backbone}, adapted to {product}"  # not the path: it is this machine's
    return adapted


def open_original(project: Project, folder: Path | None = None) -> Any:
    """The project's backbone (or the one in `folder`) on this machine's accelerator, else its CPU."""
    from defect_core.backbones import load_backbone

    return load_backbone(folder or project.params.backbone, device=this_device())


def this_device() -> str:
    """This machine's accelerator, `cuda` or `mps`, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
