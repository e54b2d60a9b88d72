"""Readers of annotation files: COCO, labelme, CVAT, YOLO, Pascal VOC, Label Studio and CSV.

`read_annotations` returns an `AnnotationIndex`, whose `Shapes` give the masks of an image. The readers are our own:
Datumaro reads neither labelme JSON nor Label Studio, and its releases need opencv < 5 and pandas < 3 (1.13.12).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
