"""Atomic writes and the digest of a folder."""

import pytest

from defect_core.data.files import atomic_path, folder_digest, replace_folder, write_bytes, write_json, write_text


def test_a_file_appears_only_when_the_block_ends(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("x")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "x" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("concurrent", [False, True])
def test_an_error_in_the_block_keeps_the_old_content(tmp_path, concurrent):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(IsADirectoryError), atomic_path(path, concurrent) as temporary:
        temporary.write_text(tmp_path.read_text())
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_complete_and_leftovers_are_removed(tmp_path):
    (tmp_path / "vae.new").mkdir()
    (tmp_path / "vae.new" / "leftover").touch()
    with atomic_path(tmp_path / "vae") as temporary:
        temporary.mkdir()
        (temporary / "weights").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["vae", "weights"]


def test_json_has_a_fixed_format(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": "é", "a": 1})
    assert path.read_bytes() == '{\n  "a": 1,\n  "b": "é"\n}\n'.encode()
    write_json(path, {"b": "é", "a": 1}, sort_keys=False, ensure_ascii=True)
    assert path.read_bytes() == b'{\n  "b": "\\u00e9",\n  "a": 1\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": path})
    assert path.read_bytes().startswith(b'{\n  "b"')


def test_folder_digest_depends_on_names_and_bytes(tmp_path):
    for name in ("one", "two"):
        write_bytes(tmp_path / name / "deep" / "a", b"1")
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
    (tmp_path / "two/deep/a").rename(tmp_path / "two/deep/b")
    assert folder_digest(tmp_path / "one") != folder_digest(tmp_path / "two")
    replace_folder(tmp_path / "two", tmp_path / "one")
    assert [path.name for path in tmp_path.rglob("*")] == ["one", "deep", "b"]
