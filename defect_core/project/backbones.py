"""The backbones of a project: its own, and those adapted to a product."""

from pathlib import Path

from defect_core.backbones.load import Backbone, load_backbone
from defect_core.project.device import default_device
from defect_core.project.paths import Project


def open_backbone(project: Project, product: str, generator: str) -> Backbone | None:
    """Return the backbone that a generator uses on a product; None for a generator without one.

    This is the backbone adapted to the product if the project adapts backbones, else the project's. A generator of
    scope `catalogue` uses the project's, because one adapted to a product would be wrong for the others.
    """
    capabilities = project.params.capabilities(generator)
    if not capabilities.uses_backbone:
        return None
    if project.params.adapt is None or capabilities.scope == "catalogue":
        return open_project_backbone(project)
    adapted = open_project_backbone(project, project.path(f"data/backbone/{product}"))
    adapted.name = f"{project.params.backbone}, adapted to {product}"  # The path belongs to this machine.
    return adapted


def open_project_backbone(project: Project, folder: Path | None = None) -> Backbone:
    """Return the project's backbone, or the one in `folder`, on this machine's accelerator or CPU."""
    params = project.params
    return load_backbone(folder or params.backbone, device=default_device(), compute=params.compute)
