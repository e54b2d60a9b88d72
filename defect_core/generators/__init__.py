"""Methods that generate synthetic image-mask pairs, behind one contract.

This package contains the contract (`base`), the registry, the base classes for new methods (`trained` and
`training_free`), helpers that several methods share (`canvas`, `composite`, `views`), and one package per method.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
