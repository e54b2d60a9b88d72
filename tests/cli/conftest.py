"""A new project of each test, copied from one that is created once."""

import shutil

import pytest

from defect_core.cli.scaffold import init_project


@pytest.fixture(scope="session")
def created_project(tmp_path_factory):
    return init_project(tmp_path_factory.mktemp("created") / "one", "demo").root


@pytest.fixture
def new_project(created_project, tmp_path, monkeypatch):
    """The folder of an empty project, which is the current one."""
    shutil.copytree(created_project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("DEFECTORY_PROJECT", raising=False)
    return tmp_path / "project"
