"""AnomalyDiffusion: learned tokens for the appearance and the place of a defect (Hu et al. 2024).

This package contains the code of this method only. The registry finds it by `config.CONFIG` and `generator.GENERATOR`.
"""
