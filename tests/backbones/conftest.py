"""The embedded backbone, loaded once for all tests of this folder, because loading takes seconds."""

import pytest

from defect_core.backbones import Backbone, load_backbone


@pytest.fixture(scope="session")
def embedded() -> Backbone:
    return load_backbone("embedded")
