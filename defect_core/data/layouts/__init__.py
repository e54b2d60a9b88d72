"""Folder layouts of inspection data sets, and `ingest`, which takes one in."""

from defect_core.data.layouts.ingest import ingest
from defect_core.data.layouts.options import (
    LAYOUTS,
    LayoutOptions,
    SourceItem,
    check_options,
)
from defect_core.data.layouts.read import read_layout
from defect_core.data.layouts.remote import is_url, opened

__all__ = ["LAYOUTS", "LayoutOptions", "SourceItem", "check_options", "ingest", "is_url", "opened", "read_layout"]
