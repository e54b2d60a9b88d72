"""Provenance: what an image was made from, and why two revisions of a project differ.

A module here reads git, dvc.lock and DVC's cache. It imports the graph and the project, but no stage, and writes no
output of a stage.
"""

from typing import TYPE_CHECKING

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "compare": ["compare_revisions", "comparison_frame"],
        "folds": ["average_folds"],
        "page": ["write_comparison"],
        "trace": ["trace_image", "verify_image"],
    },
)

if TYPE_CHECKING:
    from defect_core.lineage.compare import compare_revisions as compare_revisions
    from defect_core.lineage.compare import comparison_frame as comparison_frame
    from defect_core.lineage.folds import average_folds as average_folds
    from defect_core.lineage.page import write_comparison as write_comparison
    from defect_core.lineage.trace import trace_image as trace_image
    from defect_core.lineage.trace import verify_image as verify_image
