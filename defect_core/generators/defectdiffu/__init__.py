"""DefectDiffu: one text-guided diffusion transformer for all products and defects (ECCV 2024).

This package contains the code of this method and its embedded weights. The registry finds it by `config.CONFIG` and
`generator.GENERATOR`.
"""
