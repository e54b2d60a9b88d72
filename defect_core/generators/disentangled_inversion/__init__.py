"""Disentangled DDIM inversion: a defect inside the mask, the same background outside (Cho et al.).

This package contains the code of this method only. The registry finds it by `config.CONFIG` and `generator.GENERATOR`.
"""
