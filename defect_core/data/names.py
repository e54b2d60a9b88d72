"""Names of defect types: the label that people see, and a key that is safe in paths, commands and DVC addresses."""

import hashlib
import re
import unicodedata

from defect_core.data.records import GOOD, check_name
from defect_core.errors import InputError

RESERVED = ("images", "masks", "roi", GOOD)
"""Keys that no defect type gets, because files of a project have these names."""
_DIGITS = 6
_LENGTH = 40


def safe_key(label: str) -> str:
    """Return the key of a defect type; a label that is a safe name is its own key.

    Other labels become their ASCII letters and digits and the first hexadecimal digits of the sha256 of the label in
    Unicode form NFC. The key depends on the label alone, so a new defect type changes no other key.

    Args:
        label: any text, such as the name of a folder.

    >>> safe_key("scratch")
    'scratch'
    >>> safe_key("glue strip")
    'glue_strip_8e1de8'
    >>> safe_key("划痕")
    'type_c70030'
    """
    label = unicodedata.normalize("NFC", label)
    try:
        check_name(label, "label")
        if label.lower() not in RESERVED:
            return label
    except InputError:
        pass
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    words = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")[:_LENGTH].rstrip("_") or "type"
    return f"{words}_{hashlib.sha256(label.encode('utf-8', 'surrogatepass')).hexdigest()[:_DIGITS]}"
