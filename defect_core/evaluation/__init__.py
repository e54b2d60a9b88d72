"""Downstream models that are trained and tested on each arm: segmenter, classifier and anomaly detectors.

This package contains one package per downstream model, the parts that they share (`batches`, `training`, `weights`),
and the decision of the release gate. It knows no project and no stage: functions take images and settings.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
