"""DRAEM-style defects: a foreign texture inside a mask of Perlin noise (Zavrtanik et al. 2021).

This package contains the code of this method only. The registry finds it by `config.CONFIG` and `generator.GENERATOR`.
"""
