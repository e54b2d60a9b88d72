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

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
