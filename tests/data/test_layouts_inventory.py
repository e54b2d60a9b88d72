"""Every file of a source is accounted for: nested folders, suffixes, links, pipes, hidden files, Unicode forms."""

import os
import random
import socket
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_trees import TREES, make_image, make_mask, make_tree, names_below, touch

from defect_core.data.layouts import ingest_source, read_layout
from defect_core.data.layouts.tree import scan_source
from defect_core.data.problems import ProblemLog
from defect_core.errors import InputError


def _reasons(listing, root):
    return {str(path.relative_to(root)): reason for path, reason in listing.ignored}


def _names(items, root):
    return [item.image_path.relative_to(root).as_posix() for item in items]


@pytest.fixture
def root(tmp_path):
    return make_tree("folder", tmp_path / "plate")


def test_nested_day_folders_are_read_with_their_masks(root):
    touch(root, "good/2024-05-01/a.png", "good/2024-05-02/b/c.png")
    touch(root, "cut/night/n.png", "cut/night/n_mask.png")
    items = read_layout(root, "plate").items
    assert _names(items, root)[3:5] == ["good/2024-05-01/a.png", "good/2024-05-02/b/c.png"]
    assert read_layout(root, "plate").notes == (
        "folders inside folders of images are read too (files): good/2024-05-01 (1), good/2024-05-02/b (1), "
        "cut/night (2)",
    )
    nested = next(item for item in items if item.image_path.name == "n.png")
    assert nested.defect == "cut" and nested.mask_source.paths == (root / "cut/night/n_mask.png",)


def test_normal_images_only_in_day_folders_are_found(tmp_path):
    touch(tmp_path / "p", "good/2024-05-01/1.png", "cut/1.png", "cut/1_mask.png")
    assert [item.defect for item in read_layout(tmp_path / "p", "plate").items] == ["good", "cut"]


def test_recursive_false_names_every_nested_folder(root):
    touch(root, "good/2024-05-01/a.png", "good/2024-05-02/b.png", "cut/night/n.png")
    with pytest.raises(InputError) as caught:
        read_layout(root, "plate", options={"recursive": False})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for name in ("good/2024-05-01", "good/2024-05-02", "cut/night"):
        assert any(f"{name}: a folder with 1 image(s)" in line and "recursive: true" in line for line in lines)


def test_masks_of_nested_images_may_mirror_their_folders_or_be_flat(tmp_path):
    touch(tmp_path / "p", "good/1.png", "cut/monday/7.png", "cut/tuesday/7.png", "cut/tuesday/8.png")
    masks = ("masks/cut/monday/7.png", "masks/cut/tuesday/7.png", "masks/cut/8_mask.png")
    touch(tmp_path / "p", *masks)
    items = read_layout(tmp_path / "p", "plate").items
    found = [item.mask_source.paths[0].relative_to(tmp_path / "p").as_posix() for item in items[1:]]
    assert found == list(masks)


@pytest.mark.parametrize(
    "suffix", [".pgm", ".jfif", ".jp2", ".JPG", ".PNG", ".Tif", ".TIFF", ".bmp", ".webp", ".JPEG", ".ppm", ".jpe"]
)
def test_suffix_of_an_image_is_read(root, suffix):
    touch(root, f"good/x{suffix}")
    assert f"good/x{suffix}" in _names(read_layout(root, "plate").items, root)


@pytest.mark.parametrize("name", ["good/x.raw", "good/x.PDF", "good/x", "good/x.png.part", "x.csv~", "cut/notes.md"])
def test_unknown_suffix_is_ignored_with_a_reason(root, name):
    touch(root, name)
    assert _reasons(read_layout(root, "plate"), root)[name].startswith("no image file (")


@pytest.mark.parametrize(
    "name", ["d0_MASK.PNG", "d0_Mask.png", "D0_mask.png", "d0-mask.png", "d0_GT.bmp", "d0_label.tif"]
)
def test_mask_names_are_compared_without_case(tmp_path, name):
    touch(tmp_path / "p", "good/1.png", "cut/d0.png", f"cut/{name}")
    items = read_layout(tmp_path / "p", "plate").items
    assert [item.mask_source and item.mask_source.paths[0].name for item in items] == [None, name]


@pytest.mark.parametrize(("image_form", "mask_form"), [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("place", ["beside", "masks", "folder"])
def test_names_are_compared_in_one_unicode_form(tmp_path, image_form, mask_form, place):
    image, mask = (unicodedata.normalize(form, "Gehäuse_é") for form in (image_form, mask_form))
    type_image, type_mask = (unicodedata.normalize(form, "Größe") for form in (image_form, mask_form))
    root = tmp_path / "p"
    label = type_image if place == "folder" else "cut"
    touch(root, "good/1.png", f"{label}/{image}.png")
    masks = {"beside": "cut", "masks": "masks/cut", "folder": f"masks/{type_mask}"}[place]
    touch(root, f"{masks}/{mask}_mask.png")
    (item,) = read_layout(root, "plate").items[1:]
    assert item.image_path.exists() and item.mask_source.paths[0].exists()


def test_two_forms_of_one_name_are_two_images_with_their_masks(tmp_path):
    root = tmp_path / "p"
    names = [unicodedata.normalize(form, "ä") for form in ("NFC", "NFD")]
    touch(root, "good/1.png", *(f"cut/{name}{end}" for name in names for end in (".png", "_mask.png")))
    items = read_layout(root, "plate").items[1:]
    assert [item.mask_source.paths[0].stem for item in items] == [f"{item.image_path.stem}_mask" for item in items]


def test_hidden_and_system_files_are_ignored_with_a_reason(root):
    touch(root, ".git/config", "good/.x.png", "good/Thumbs.db", "__MACOSX/good/._1.png", "cut/.cache/a/b.png")
    reasons = _reasons(read_layout(root, "plate"), root)
    assert {name: reasons[name] for name in (".git/config", "good/.x.png", "cut/.cache/a/b.png")} == {
        ".git/config": "hidden",
        "good/.x.png": "hidden",
        "cut/.cache/a/b.png": "hidden",
    }
    assert reasons["good/Thumbs.db"] == reasons["__MACOSX/good/._1.png"] == "file of the operating system"


@pytest.mark.parametrize("kind", ["link", "pipe", "socket", "device", "link to itself"])
@pytest.mark.parametrize("name", ["good/x.png", "good/x.txt"])
def test_what_is_no_regular_file_is_refused_or_ignored(root, kind, name, monkeypatch):
    path = root / name
    if kind == "link":
        path.symlink_to(root / "nothing.png")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(path.parent)  # the path of a socket has at most 108 bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    problems = ProblemLog()
    listing = read_layout(root, "plate", problems=problems)
    expected = {"link": "a link without a target", "pipe": "a named pipe", "socket": "a socket"}
    expected |= {"device": "a character device", "link to itself": "a link without a target"}
    assert _reasons(listing, root)[name].startswith(expected[kind])
    if name.endswith(".png"):
        assert len(problems.problems) == 1 and f"{path}: {expected[kind]}" in problems.problems[0]
    else:
        assert not problems


def test_links_to_files_are_read(root, tmp_path):
    touch(tmp_path, "elsewhere/7.png")
    (root / "good/7.png").symlink_to(tmp_path / "elsewhere/7.png")
    assert "good/7.png" in _names(read_layout(root, "plate").items, root)


def test_linked_folders_are_read_once_and_loops_end(root, tmp_path):
    touch(tmp_path, "other/9.png")
    (tmp_path / "other/again").symlink_to(tmp_path / "other")
    (root / "good/linked").symlink_to(tmp_path / "other")
    (root / "good/up").symlink_to(root)
    (root / "cut/latest").symlink_to(root / "good")
    listing = read_layout(root, "plate")
    assert _names(listing.items, root).count("good/linked/9.png") == 1
    reasons = _reasons(listing, root)
    assert reasons["good/up"] == "link to a folder that contains it"
    assert reasons["cut/latest"] == "link to good, which is read there"
    assert reasons["good/linked/again"] == "link to a folder that another link names"


def test_an_unreadable_folder_is_a_problem(root, monkeypatch):
    (root / "good/secret").mkdir()
    real = os.scandir

    def refuse(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"good/secret: cannot be read \(Permission denied\)"):
        read_layout(root, "plate")


def test_names_that_are_no_utf8_are_read_and_escaped_in_messages(tmp_path):
    root = tmp_path / "p"
    touch(root, "good/1.png")
    os.makedirs(os.fsencode(root / "cut"))
    with open(os.fsencode(root / "cut") + b"/\xe9.png", "wb") as stream:
        stream.write(b"x")
    with pytest.raises(InputError, match=r"cut/\\xe9\.png: has no mask"):
        read_layout(root, "plate")


def test_a_name_with_control_characters_stays_on_one_line(tmp_path):
    touch(tmp_path / "p", "good/1.png", "cut/a\nb\x1b[31m.png")
    with pytest.raises(InputError) as caught:
        read_layout(tmp_path / "p", "plate")
    assert len(str(caught.value).splitlines()) == 1 and "\x1b" not in str(caught.value)


def test_no_file_is_opened_by_the_scan(root, monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr("builtins.open", refuse)
    tree, ignored = scan_source(root, (".png",), ProblemLog())
    assert len(list(tree.all_files())) == 9 and ignored == []


def test_masks_of_normal_images_and_masks_without_an_image_have_a_reason(root):
    touch(root, "good/0_mask.png", "cut/77_mask.png", "stray.png", "masks.png")
    reasons = _reasons(read_layout(root, "plate"), root)
    assert reasons["good/0_mask.png"] == "mask of a normal image"
    assert reasons["cut/77_mask.png"] == "mask without an image"
    assert reasons["stray.png"] == "beside the class folders"


def test_the_option_group_names_the_part_of_each_image(root):
    touch(root, "good/part12_left.png")
    options = {"group": "part([0-9]+)_"}
    groups = {item.image_path.name: item.group for item in read_layout(root, "plate", options=options).items}
    assert groups["part12_left.png"] == "12" and groups["1.png"] == ""


def test_nested_images_are_ingested(tmp_path):
    root = tmp_path / "plate"
    for number in range(4):
        make_image(root / f"good/day{number}/{number}.png", number)
        make_image(root / f"cut/day{number}/{number}.JPG", 50 + number)
        make_mask(root / f"cut/day{number}/{number}_MASK.PNG", (5, 255))
    summary = ingest_source(root, "plate", tmp_path / "out")
    assert summary["good"] == 4 and summary["defects"] == {"cut": 4}


_IMAGES = ["1.png", "2.JPG", "2_mask.png", "ä_MASK.png", "x.pgm"]
_OTHERS = ["notes.txt", ".hidden", "x.raw", "labels.csv", "good", "cut", "masks", "NG", "OK", "a", "night"]
_NAMES = st.sampled_from(_IMAGES + _OTHERS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(_NAMES, min_size=1, max_size=4), max_size=25), st.sampled_from(sorted(TREES)), st.integers())
def test_taken_and_left_out_are_everything(tmp_path_factory, paths, name, seed):
    root = make_tree(name, tmp_path_factory.mktemp("any") / "plate")
    chance = random.Random(seed)
    for parts in paths:
        path = root.joinpath(*parts)
        blocked = any(parent.is_symlink() or (parent.exists() and not parent.is_dir()) for parent in path.parents)
        if blocked or path.is_symlink() or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = chance.randrange(12)
        if kind == 0:
            path.symlink_to(root)
        elif kind == 1:
            path.symlink_to("nothing")
        elif kind == 2:
            os.mkfifo(path)
        else:
            path.write_bytes(b"x")
    listing = read_layout(root, "plate", problems=ProblemLog(), missing_masks="leave_out")
    used = [str(path.relative_to(root)) for path in listing.used_files]
    ignored = [str(path.relative_to(root)) for path, _ in listing.ignored]
    assert sorted(used + ignored) == names_below(root)
    assert {item.image_path for item in listing.items} <= set(listing.used_files)
