"""What lies in the products' remote sources, on record: `data/source/<product>.json`, which git tracks.

DVC takes no digest of a bucket. So names, sizes and checksums of the objects stand in a small file, on which `ingest`
depends: it changes when an image does, and only then.
"""

import json

from defect_core.data.layouts.remote import is_url, list_source
from defect_core.errors import InputError
from defect_core.project.paths import Project, write_json


def record_source(project: Project, product: str) -> bool:
    """Look at a product's remote source and put on record what lies there.

    Returns:
        Whether the record changed; False for a source on this machine, which DVC looks at itself.

    Raises:
        InputError: the source cannot be read; the record stays.
    """
    source = project.params.sources[product]
    if source.path is None or not is_url(source.path):
        return False
    found = {name: list(facts) for name, facts in list_source(source.path).items()}
    path = project.path(source.tracked(product))
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == found:
        return False
    write_json(path, found)
    return True


def record_sources(project: Project) -> dict[str, str]:
    """Look at all remote sources.

    Returns:
        Products whose source could not be read, and why, in one line.
    """
    unread = {}
    for product in project.params.products:
        try:
            record_source(project, product)
        except InputError as error:
            unread[product] = str(error)
    return unread
