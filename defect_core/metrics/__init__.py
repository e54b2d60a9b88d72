"""Scores of synthetic images and of downstream models: pure functions, and torchmetrics classes over them.

This package has everything that computes a number from images, masks, features or score maps. It has no project, no
stage and no training. Functions take arrays. Classes take tensors or arrays and follow `torchmetrics.Metric`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
