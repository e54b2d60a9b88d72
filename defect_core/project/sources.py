"""The recorded listings of remote sources: `data/source/<product>.json`, tracked by git.

DVC takes no digest of a bucket. So `ingest` depends on a small file with the names, sizes and checksums of the objects,
which changes exactly when an image does.
"""

import json

from defect_core.data.files import write_json
from defect_core.data.layouts.remote import is_url, list_source
from defect_core.errors import InputError
from defect_core.project.paths import Project


def record_source(project: Project, product: str) -> bool:
    """List the remote source of a product and record the listing.

    Returns:
        Whether the record changed; False for a source on this machine, which DVC tracks itself.

    Raises:
        InputError: the source cannot be read; the old record stays.
    """
    source = project.params.sources[product]
    if source.path is None or not is_url(source.path):
        return False
    listing = {name: list(facts) for name, facts in list_source(source.path).items()}
    path = project.path(source.tracked_input(product))
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == listing:
        return False
    write_json(path, listing)
    return True


def record_sources(project: Project) -> dict[str, str]:
    """Record the listings of all remote sources.

    Returns:
        For each product whose source could not be read, the reason in one line.
    """
    unreadable = {}
    for product in project.params.products:
        try:
            record_source(project, product)
        except InputError as error:
            unreadable[product] = str(error)
    return unreadable
