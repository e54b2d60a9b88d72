"""Folder layouts of inspection data sets, and `ingest_source`, which copies a data set into a project.

A module here reads one layout or a step of ingestion. It returns `SourceItem`s and never decides a split.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
