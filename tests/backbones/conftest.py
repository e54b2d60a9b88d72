"""One embedded backbone for all tests of this folder; loading it costs seconds."""

import pytest

from defect_core.backbones import Backbone, load_backbone


@pytest.fixture(scope="session")
def embedded() -> Backbone:
    return load_backbone("embedded")
