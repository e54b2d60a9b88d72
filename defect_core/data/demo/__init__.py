"""Two rendered demo products with exact masks: a woven fabric (texture) and a turned metal flange (object).

They replace a real data set in a first run, which then needs no download and no licence. One module per product
renders its scene and its defects; `camera` has what the products share.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
