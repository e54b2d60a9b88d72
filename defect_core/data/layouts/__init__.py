"""Folder layouts of inspection data sets, and `ingest_source`, which copies a data set into a project.

A module here reads one layout or a step of ingestion. It returns `SourceItem`s and never decides a split.
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ingest": ["ingest_source"],
        "options": ["LAYOUTS", "LayoutOptions", "SourceItem", "check_options"],
        "read": ["read_layout"],
        "remote": ["is_url", "open_source"],
    },
)

if TYPE_CHECKING:
    from defect_core.data.layouts.ingest import ingest_source as ingest_source
    from defect_core.data.layouts.options import LAYOUTS as LAYOUTS
    from defect_core.data.layouts.options import LayoutOptions as LayoutOptions
    from defect_core.data.layouts.options import SourceItem as SourceItem
    from defect_core.data.layouts.options import check_options as check_options
    from defect_core.data.layouts.read import read_layout as read_layout
    from defect_core.data.layouts.remote import is_url as is_url
    from defect_core.data.layouts.remote import open_source as open_source
