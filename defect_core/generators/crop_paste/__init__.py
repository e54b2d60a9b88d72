"""Crop-paste: real defects pasted onto normal images, the baseline of every comparison.

This package contains the code of this method only. The registry finds it by `config.CONFIG` and `generator.GENERATOR`.
"""
