"""Synthetic image-mask pairs of defects for visual inspection.

    import defect_core as dc

    backbone = dc.load_backbone("embedded")
    generator = dc.create_generator("seas", backbone, steps=200)
    generator.fit(dc.read_examples("path/to/screw"), work_dir="runs/seas", seed=0)
    pairs = generator.generate("scratch_head", n=8, seed=1)
    generator.save("seas-screw")

Names are imported when they are first used, so that `import defect_core` is fast and imports no torch.
The packages below hold the rest; each says in its docstring what belongs there.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from defect_core.backbones.load import Backbone as Backbone
    from defect_core.backbones.load import load_backbone as load_backbone
    from defect_core.errors import InputError as InputError
    from defect_core.generators.base import Example as Example
    from defect_core.generators.base import SyntheticPair as SyntheticPair
    from defect_core.project.handle import open_project as open_project
    from defect_core.synthesis.defect_generator import DefectGenerator as DefectGenerator
    from defect_core.synthesis.defect_generator import create_generator as create_generator
    from defect_core.synthesis.defect_generator import load_generator as load_generator
    from defect_core.synthesis.defect_generator import read_examples as read_examples

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backbones.load": ["Backbone", "load_backbone"],
        "errors": ["InputError"],
        "generators.base": ["Example", "SyntheticPair"],
        "project.handle": ["open_project"],
        "synthesis.defect_generator": ["DefectGenerator", "create_generator", "load_generator", "read_examples"],
    },
)
