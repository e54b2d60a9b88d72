"""Methods that generate synthetic image-mask pairs, behind one contract.

This package contains the contract (`base`), the registry, the base classes for new methods (`trained` and
`training_free`), helpers that several methods share (`canvas`, `composite`, `views`), and one package per method.
"""

from typing import TYPE_CHECKING

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "base": ["CheckedRequest", "Example", "Generator", "SampleRequest", "SyntheticPair", "check_request"],
        "registry": [
            "Capabilities",
            "GeneratorConfig",
            "generator_capabilities",
            "generator_class",
            "generator_config",
            "generator_names",
        ],
        "trained": ["SavedGenerator", "TrainedGenerator"],
        "training_free": ["TrainingFreeGenerator"],
    },
)

if TYPE_CHECKING:
    from defect_core.generators.base import CheckedRequest as CheckedRequest
    from defect_core.generators.base import Example as Example
    from defect_core.generators.base import Generator as Generator
    from defect_core.generators.base import SampleRequest as SampleRequest
    from defect_core.generators.base import SyntheticPair as SyntheticPair
    from defect_core.generators.base import check_request as check_request
    from defect_core.generators.registry import Capabilities as Capabilities
    from defect_core.generators.registry import GeneratorConfig as GeneratorConfig
    from defect_core.generators.registry import generator_capabilities as generator_capabilities
    from defect_core.generators.registry import generator_class as generator_class
    from defect_core.generators.registry import generator_config as generator_config
    from defect_core.generators.registry import generator_names as generator_names
    from defect_core.generators.trained import SavedGenerator as SavedGenerator
    from defect_core.generators.trained import TrainedGenerator as TrainedGenerator
    from defect_core.generators.training_free import TrainingFreeGenerator as TrainingFreeGenerator
