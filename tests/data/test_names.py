"""Keys of defect types: safe in paths and commands, readable, unique and independent of other types."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defect_core.data.names import RESERVED, safe_key
from defect_core.data.records import check_name


@given(st.text(min_size=1))
def test_every_label_has_a_safe_key(label):
    key = safe_key(label)
    assert check_name(key, "key") == key and key.lower() not in RESERVED
    assert safe_key(label) == key


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_labels_have_different_keys(one, other):
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (safe_key(one) == safe_key(other)) == same


@pytest.mark.parametrize("label", ["scratch", "01", "1e3", "null", "a-b.c", "Kratzer"])
def test_a_safe_label_is_its_key(label):
    assert safe_key(label) == label


@pytest.mark.parametrize(
    ("label", "start"),
    [("glue strip", "glue_strip_"), ("Größe", "Groe_"), ("划痕", "type_"), ("good", "good_"), ("masks", "masks_")],
)
def test_other_labels_stay_readable(label, start):
    assert safe_key(label).startswith(start)


def test_both_unicode_forms_of_a_label_have_one_key():
    assert safe_key(unicodedata.normalize("NFD", "Größe")) == safe_key(unicodedata.normalize("NFC", "Größe"))
