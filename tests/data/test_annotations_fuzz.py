"""Annotations with any value in any place: problems of one line, never another exception."""

import copy
from contextlib import suppress

import numpy as np
import pytest
from annotated_plates import CENTERS, CORNERS, SIZE, coco, flat, save_plate, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rle_encoding import mask_to_rle

from defect_core.data.annotations import read_annotations
from defect_core.data.problems import ProblemLog
from defect_core.errors import InputError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["a.png", "../a.png", "C:\\a.png", "http://[x/a.png", "\0", "%00", "rle", "?d=/a.png"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "x", "points"]), inner, max_size=2)
    ),
    max_leaves=6,
)
LABELME = {
    "shapes": [
        {"label": "x", "points": CENTERS, "shape_type": "polygon"},
        {"label": "x", "points": CENTERS[:2], "shape_type": "circle"},
        {"label": "x", "points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "aaaa"},
    ],
    "imagePath": "a.png",
    "imageHeight": SIZE[0],
    "imageWidth": SIZE[1],
}
REGION = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
TASK = {
    "data": {"image": "a.png"},
    "file_upload": "a.png",
    "annotations": [
        {
            "result": [
                {**REGION, "type": "polygonlabels", "value": {"points": CORNERS, "polygonlabels": ["x"]}},
                {**REGION, "type": "brushlabels", "value": {"format": "rle", "rle": [0] * 9, "brushlabels": ["x"]}},
                {
                    **REGION,
                    "type": "ellipselabels",
                    "value": {"x": 5, "y": 5, "radiusX": 3, "radiusY": 3, "rotation": 1, "ellipselabels": ["x"]},
                },
                {
                    **REGION,
                    "type": "rectanglelabels",
                    "value": {"x": 5, "y": 5, "width": 3, "height": 3, "rotation": 1, "rectanglelabels": ["x"]},
                },
            ]
        }
    ],
}


def coco_content():
    runs = {"size": list(SIZE), "counts": mask_to_rle(np.eye(*SIZE, dtype=bool))}
    return coco(
        {"segmentation": [flat(CORNERS)], "bbox": [1, 1, 2, 2]},
        {"segmentation": runs},
        {"segmentation": {"size": list(SIZE), "counts": "52203"}},
        {"bbox": [1, 1, 2, 2]},
    )


def places(content, path=()):
    yield path
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from places(content[key], (*path, key))


@pytest.mark.parametrize("name", ["coco", "labelme", "label_studio"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_gives_masks_or_problems_of_one_line(name, data, tmp_path):
    content = copy.deepcopy({"coco": coco_content(), "labelme": LABELME, "label_studio": [TASK]}[name])
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(content))[1:] or [()]))
        target = content
        for key in path[:-1]:
            target = target[key]
        if path:
            target[path[-1]] = data.draw(VALUES)
    save_plate(tmp_path / "a.png")
    write(tmp_path / "x.json", content)
    log = ProblemLog()
    index = read_annotations(tmp_path, {"boxes": "rectangles"}, log)
    assert all("\n" not in line and ": " in line for line in log.problems)
    for path in index.images if index else ():
        with suppress(InputError):
            for mask in index.for_image(path).masks(*SIZE).values():
                assert mask.shape == SIZE and mask.any()
