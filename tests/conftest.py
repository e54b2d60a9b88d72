"""Which tests run in one process of `pytest -n`: those of a file, or of a folder whose tests share a costly fixture."""

from pathlib import Path

import pytest

SHARED_FIXTURES = ("lineage", "pipelines", "pretraining")


def pytest_collection_modifyitems(items):
    for item in items:
        path = item.path.relative_to(Path(__file__).parents[1])
        group = path.parent if path.parent.name in SHARED_FIXTURES else path
        item.add_marker(pytest.mark.xdist_group(group.as_posix()))
