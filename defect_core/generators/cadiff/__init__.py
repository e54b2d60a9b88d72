"""CADiff: context-aware diffusion for controllable anomaly generation (Tong et al. 2026).

This package contains the code of this method only. The registry finds it by `config.CONFIG` and `generator.GENERATOR`.
"""
