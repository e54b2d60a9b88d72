"""DefectDiffu: one diffusion transformer for all products and defects."""
