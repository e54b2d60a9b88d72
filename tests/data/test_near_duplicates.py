"""Near-duplicates: which pairs are found, which are not, and how long it takes."""

import io
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from defect_core.data.demo import render_demo_image
from defect_core.data.near_duplicates import (
    MAX_DISTANCE,
    SIDE,
    THUMBNAILS,
    ThumbnailTable,
    across,
    describe,
    find_pairs,
    perceptual_hashes,
    read_thumbnails,
    similar_hashes,
    thumbnail,
)
from defect_core.data.records import Record, pixel_digest, save_png
from defect_core.data.splits import split_records

COUNT = 40


@pytest.fixture(scope="module")
def weave():
    return [render_demo_image("weave", "train/good", 0, number).image for number in range(COUNT)]


def _encode(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=80)
    return np.asarray(Image.open(file).convert("RGB"))


def _noise(image, seed=0):
    values = image + np.random.default_rng(seed).normal(0, 2, image.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def _half(image):
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width // 2, height // 2), Image.Resampling.BICUBIC))


COPIES = {
    "encoded again": _encode,
    "next frame": _noise,
    "brighter": lambda image: np.clip(1.08 * image + 5, 0, 255).astype(np.uint8),
    "half the size": _half,
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_other_items_are_not(weave, kind):
    copies = [COPIES[kind](weave[number]) for number in (3, 11, 27)]
    hashes = perceptual_hashes(np.stack([thumbnail(image) for image in [*weave, *copies]]))
    pairs, distances = similar_hashes(hashes)
    assert [tuple(pair) for pair in pairs] == [(3, COUNT), (11, COUNT + 1), (27, COUNT + 2)]
    assert (distances <= MAX_DISTANCE).all()


def test_items_in_a_fixture_that_differ_only_in_details_are_no_pairs():
    """All images show the same part at the same position; only small marks differ."""
    rng = np.random.default_rng(0)
    part = render_demo_image("flange", "train/good", 0, 1).image
    images = []
    for _ in range(30):
        image = part.astype(float) + rng.normal(0, 2, part.shape)
        for _ in range(12):
            row, column = rng.integers(20, 100, 2)
            image[row : row + 4, column : column + 4] += rng.choice([-40, 40])
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    images.append(_noise(images[7], seed=1))
    pairs, _ = similar_hashes(perceptual_hashes(np.stack([thumbnail(image) for image in images])))
    assert [tuple(pair) for pair in pairs] == [(7, 30)]


def test_pairs_agree_with_a_comparison_of_all_hashes():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 16, (300, 24), dtype=np.uint16)
    for number in range(0, 100, 2):  # neighbours with 0 to 23 different bits, which are found for certain
        hashes[number + 1] = hashes[number]
        for bit in rng.choice(384, rng.integers(0, 24), replace=False):
            hashes[number + 1, bit // 16] ^= np.uint16(1 << (bit % 16))
    bits = np.unpackbits(hashes.view(np.uint8), axis=1).astype(int)
    expected = {
        (one, other): int(np.abs(bits[one] - bits[other]).sum())
        for one in range(300)
        for other in range(one + 1, 300)
        if np.abs(bits[one] - bits[other]).sum() <= MAX_DISTANCE
    }
    pairs, distances = similar_hashes(hashes)
    assert {
        tuple(pair): distance for pair, distance in zip(pairs.tolist(), distances.tolist(), strict=True)
    } == expected
    assert len(expected) == 50


def test_20000_images_take_seconds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 16, (20_000, 24), dtype=np.uint16)
    hashes[15_000:15_100] = hashes[:100]
    start = time.process_time()
    pairs, _ = similar_hashes(hashes)
    assert time.process_time() - start < 5
    assert len(pairs) == 100 and (pairs[:, 1] - pairs[:, 0] == 15_000).all()
    hashes[:] = hashes[0]  # the worst case: all are the same
    start = time.process_time()
    similar_hashes(hashes[:6000])
    assert time.process_time() - start < 20


def _write(raw, images, defect="good"):
    records = []
    for number, image in enumerate(images):
        name = f"images/{defect}{number:02d}.png"
        save_png(image, raw / name)
        height, width = image.shape[:2]
        source = f"{defect}/{number:02d}.png"
        records.append(Record("p", defect, name, None, "", pixel_digest(image), width, height, source=source))
    return records


def test_the_warning_names_pairs_across_the_split(tmp_path, weave):
    records = _write(tmp_path, weave[:20])
    records += _write(tmp_path, [_noise(weave[19]), _noise(weave[2]), *weave[20:30]], "cut")
    pairs = find_pairs(records, tmp_path)
    assert {(pair.first.source, pair.second.source) for pair in pairs} == {
        ("good/19.png", "cut/00.png"),
        ("good/02.png", "cut/01.png"),
    }
    divided = split_records(records, "first_third")  # good/19 tests and cut/00 trains; good/02 and cut/01 train
    found = across(pairs, divided)
    assert [(pair.first.source, pair.second.source) for pair in found] == [("good/19.png", "cut/00.png")]
    first, second = describe(found)
    assert "1 near-duplicate pair(s)" in first and "split.near_duplicates: group" in first
    assert second == f"  cut/00.png (train), good/19.png (test): {found[0].distance} of 384 bits differ"
    together = split_records(records, "first_third", near_duplicates=pairs)
    assert across(pairs, together) == [] == describe([])


def test_thumbnails_of_ingest_are_used(tmp_path, weave):
    records = _write(tmp_path, weave[:4])
    from_images = read_thumbnails(records, tmp_path)
    assert from_images.shape == (4, SIDE, SIDE)
    table = {record.sha256: thumbnail(image) for record, image in zip(records[:3], weave, strict=False)}
    _write_table(table, tmp_path / THUMBNAILS)
    before = (tmp_path / THUMBNAILS).read_bytes()
    for record in records[:3]:
        (tmp_path / record.image).unlink()
    assert np.array_equal(read_thumbnails(records, tmp_path), from_images)
    _write_table(dict(reversed(table.items())), tmp_path / THUMBNAILS)
    assert (tmp_path / THUMBNAILS).read_bytes() == before
    names = np.frombuffer("".join(sorted(table)).encode(), np.uint8).reshape(3, 64)
    save_file({"pixels": np.stack([table[key] for key in sorted(table)]), "sha256": names}, tmp_path / "reference")
    assert (tmp_path / "reference").read_bytes() == before
    _write_table({}, tmp_path / THUMBNAILS)
    assert {key: value.size for key, value in load_file(tmp_path / THUMBNAILS).items()} == {"pixels": 0, "sha256": 0}


def _write_table(thumbnails, path):
    table = ThumbnailTable()
    for digest, pixels in thumbnails.items():
        table.add(digest, pixels)
    table.write(path)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_images_and_images_of_one_colour(tmp_path, weave, count):
    records = _write(tmp_path, [*weave[:count], *([_noise(weave[0])] if count > 1 else [])])
    records += _write(tmp_path, [np.full((32, 32, 3), value, np.uint8) for value in (0, 9, 255)], "flat")
    pairs = find_pairs(records, tmp_path)
    assert [(pair.first.source, pair.second.source) for pair in pairs] == (
        [("good/00.png", f"good/{count:02d}.png")] if count > 1 else []
    )
