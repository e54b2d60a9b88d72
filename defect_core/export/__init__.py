"""Released sets in the layouts that other tools read, with a dataset card."""

from defect_core.export.export import FORMATS, export

__all__ = ["FORMATS", "export"]
