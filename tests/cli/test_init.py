"""`init`: git, the ignores from the start, folders with files, and what `doctor` says."""

import json
import subprocess

import pytest
from product_images import call, listing


def _git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEFECTORY_PROJECT", raising=False)
    return tmp_path / "new"


def test_init_creates_a_git_repository_with_the_right_ignores(folder, monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "init", folder)
    assert code == 0 and "git: repository" in out
    for path in (".defectory", ".dvc/cache", ".dvc/tmp"):
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "x").write_text("x")
    (folder / ".dvc/config.local").write_text("")
    untracked = _git(folder, "ls-files", "--others", "--cached", "--exclude-standard").split()
    assert not [
        path for path in untracked if path.startswith((".defectory", ".dvc/cache", ".dvc/tmp", ".dvc/config.local"))
    ]
    assert {"params.yaml", "dvc.yaml", "data/README.md", ".dvc/config", ".gitignore"} <= set(untracked)
    assert "no_scm" not in (folder / ".dvc/config").read_text()


def test_init_joins_the_repository_that_contains_the_folder(folder, tmp_path, monkeypatch, capsys):
    _git(tmp_path, "init", "-q")
    code, out, _ = call(monkeypatch, capsys, "init", folder)
    assert code == 0 and "part of the repository" in out and not (folder / ".git").exists()
    assert (folder / ".dvc/config").is_file()


def test_init_keeps_the_files_of_a_folder_and_extends_its_ignores(folder, monkeypatch, capsys):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / ".gitignore").write_text("*.log")
    assert call(monkeypatch, capsys, "init", folder)[0] == 0
    assert (folder / "notes.txt").read_text() == "mine"
    lines = (folder / ".gitignore").read_text().splitlines()
    assert lines[0] == "*.log" and ".defectory/" in lines and len(lines) == len(set(lines))


def test_init_names_every_file_that_it_would_overwrite(folder, monkeypatch, capsys):
    (folder / "data").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "data/README.md"):
        (folder / name).write_text("mine")
    before = listing(folder)
    code, _, error = call(monkeypatch, capsys, "init", folder)
    assert code == 2 and len(error.splitlines()) == 3
    for line, name in zip(sorted(error.splitlines()), ("data/README.md", "dvc.yaml", "params.yaml"), strict=True):
        assert name in line and "would be overwritten" in line
    assert listing(folder) == before and not (folder / ".git").exists()


def test_without_git_the_command_and_doctor_say_what_does_not_work(folder, monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "init", folder, "--no-git")
    assert code == 0 and "`defectory compare`" in out and not (folder / ".git").exists()
    monkeypatch.chdir(folder)
    facts = json.loads(call(monkeypatch, capsys, "doctor", "--json")[1])
    assert facts["git"].startswith("no repository; ") and "git init && defectory sync" in facts["git"]
    _git(folder, "init", "-q")
    assert call(monkeypatch, capsys, "sync")[0] == 0
    facts = json.loads(call(monkeypatch, capsys, "doctor", "--json")[1])
    assert facts["git"] == "repository"


def test_doctor_names_a_file_that_git_ignores_by_mistake(folder, monkeypatch, capsys):
    call(monkeypatch, capsys, "init", folder)
    (folder / ".gitignore").write_text(".defectory/\n*.yaml\n")
    monkeypatch.chdir(folder)
    facts = json.loads(call(monkeypatch, capsys, "doctor", "--json")[1])
    assert facts["git"].startswith("params.yaml: git ignores it")


def test_init_makes_its_own_repository_in_a_folder_that_another_one_ignores(folder, tmp_path, monkeypatch, capsys):
    _git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("/new\n")
    assert call(monkeypatch, capsys, "init", folder)[0] == 0
    assert (folder / ".git").is_dir()
