from .dataset import export_dataset as export_dataset
from .formats import FORMATS as FORMATS
from .formats import ExportItem as ExportItem
from .shapes import mask_to_polygons as mask_to_polygons
