"""Options of layouts: all problems at once, which layout accepts which, and their documentation."""

from pathlib import Path

import pytest
import yaml
from source_trees import make_tree

from defect_core.data.layouts import LAYOUTS, LayoutOptions, check_options, read_layout
from defect_core.data.layouts.options import FAMILIES, IMAGE_SUFFIXES, option_layouts
from defect_core.data.layouts.reference import BEGIN, insert_option_table
from defect_core.errors import InputError, InputErrors

DOCUMENT = Path(__file__).parents[2] / "docs/data.md"


@pytest.mark.parametrize("key", LayoutOptions.model_fields)
def test_the_example_of_every_option_is_valid(key):
    extra = LayoutOptions.model_fields[key].json_schema_extra
    value = yaml.safe_load(extra["example"])
    assert getattr(check_options({key: value}), key) is not None
    assert set(option_layouts(key)) <= {"all", *LAYOUTS}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"godo": "x"}, r"options\.godo: unknown layout option; expected one of good"),
        ({"good": 3}, r"options\.good: .*string.*found 3"),
        ({"masks": "../x"}, r"options\.masks: '\.\./x'; expected a path inside the source"),
        ({"roi": "/x"}, r"options\.roi: '/x'; expected a path inside the source"),
        ({"image_suffixes": ["png"]}, r"options\.image_suffixes: 'png'; expected suffixes with a dot"),
        ({"mask_suffix": "mask"}, r"options\.mask_suffix: 'mask'; expected an ending"),
        ({"group": "("}, r"options\.group: '\(' is no regular expression"),
        ({"mask_rule": "most"}, r"options\.mask_rule: .*found 'most'"),
        ({"recursive": "no"}, r"options\.recursive: .*found 'no'"),
        ({"annotations": {"fromat": "coco"}}, r"annotations\.fromat: unknown option"),
    ],
)
def test_an_unusable_option_is_one_line(options, expected):
    with pytest.raises(InputError, match=expected) as caught:
        check_options(options)
    assert "\n" not in str(caught.value)


def test_all_unusable_options_are_named_at_once():
    with pytest.raises(InputErrors) as caught:
        check_options({"godo": "x", "good": 3, "recursive": 1})
    assert len(caught.value.problems) == 3


def test_a_text_names_the_annotation_file():
    assert check_options({"annotations": "labels/a.json"}).annotations.file == "labels/a.json"


@pytest.mark.parametrize(
    ("tree", "options"),
    [
        ("mvtec", {"subfolder": "x"}),
        ("visa", {"good": "x"}),
        ("loco", {"mask_suffix": ".png"}),
        ("dagm", {"masks": "x"}),
    ],
)
def test_an_option_of_another_layout_is_refused(tmp_path, tree, options):
    root = make_tree(tree, tmp_path / "plate")
    (key,) = options
    with pytest.raises(InputError, match=rf"options\.{key}: not an option of layout {tree}; expected .*defects"):
        read_layout(root, "plate", "auto", options)


@pytest.mark.parametrize("key", ["layout", "demo", "folder"])
def test_unknown_layout_demo_and_missing_folder_are_refused(tmp_path, key):
    expected = {"layout": "unknown layout 'cocoa'; expected one of auto", "demo": "demo has no source folder"}
    layout = {"layout": "cocoa", "demo": "demo"}.get(key, "auto")
    with pytest.raises(InputError, match=expected.get(key, "nothing: not a folder")):
        read_layout(tmp_path / "nothing", "plate", layout)


@pytest.mark.parametrize("key", LayoutOptions.model_fields)
def test_every_option_is_documented_with_its_example(key):
    text = DOCUMENT.read_text(encoding="utf-8")
    assert f"| `{key}` |" in text
    assert LayoutOptions.model_fields[key].json_schema_extra["example"] in text


def test_the_option_table_of_the_document_is_current():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert BEGIN in text
    assert insert_option_table(text) == text, "run: python -m defect_core.data.layouts.reference docs/data.md"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_documented(layout):
    assert f"`{layout}`" in DOCUMENT.read_text(encoding="utf-8")
    assert FAMILIES.get(layout, layout) in LAYOUTS


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_image_suffix_is_documented(suffix):
    assert f"`{suffix}`" in DOCUMENT.read_text(encoding="utf-8")
