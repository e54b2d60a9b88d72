"""Two rendered demo products with exact masks: a woven fabric (texture) and a turned metal flange (object).

They replace a real data set in a first run, which then needs no download and no licence. One module per product
renders its scene and its defects; `camera` has what the products share.
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "render": ["DEMO_PRODUCTS", "DemoImage", "demo_defects", "render_demo_image", "write_demo_product"],
    },
)

if TYPE_CHECKING:
    from defect_core.data.demo.render import DEMO_PRODUCTS as DEMO_PRODUCTS
    from defect_core.data.demo.render import DemoImage as DemoImage
    from defect_core.data.demo.render import demo_defects as demo_defects
    from defect_core.data.demo.render import render_demo_image as render_demo_image
    from defect_core.data.demo.render import write_demo_product as write_demo_product
