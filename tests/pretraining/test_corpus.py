"""The corpus of rendered scenes: a function of the seed, with masks that contain exactly the changed pixels."""

import numpy as np
import pytest

from defect_core.pretraining.corpus import Scene, crop_view, render_scene, vocabulary_texts
from defect_core.pretraining.corpus.defects import DEFECTS
from defect_core.pretraining.corpus.noise import coordinates
from defect_core.pretraining.corpus.objects import OBJECTS
from defect_core.pretraining.corpus.surfaces import SURFACES

COUNT = 160


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(np.random.default_rng([3, index])) for index in range(COUNT)]


def test_a_seed_always_gives_the_same_scene(scenes: list[Scene]) -> None:
    again = render_scene(np.random.default_rng([3, 5]))
    assert again.caption == scenes[5].caption
    assert np.array_equal(again.image, scenes[5].image)
    assert np.array_equal(again.mask, scenes[5].mask)
    assert not np.array_equal(again.image, scenes[6].image)


def test_image_differs_from_normal_inside_the_mask_only(scenes: list[Scene]) -> None:
    for scene in scenes:
        differs = (scene.image != scene.normal).any(-1)
        assert not differs[~scene.mask].any()
        if scene.mask.any():
            assert differs[scene.mask].mean() > 0.6


def test_shapes_types_and_captions_of_a_scene(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == scene.normal.shape == (128, 128, 3)
        assert scene.image.dtype == np.uint8
        assert scene.mask.dtype == bool
        assert scene.mask.any() == (scene.tags[1] != "")
        assert (scene.caption != scene.normal_caption) == scene.mask.any()
        assert scene.image.std() > 0


def test_normal_defective_gray_and_colour_images_all_occur(scenes: list[Scene]) -> None:
    gray = np.mean([np.array_equal(scene.image[..., 0], scene.image[..., 2]) for scene in scenes])
    assert 0.25 < gray < 0.6
    assert 0.5 < np.mean([scene.mask.any() for scene in scenes]) < 0.8


def test_every_kind_of_product_and_defect_occurs() -> None:
    tags = [render_scene(np.random.default_rng([4, index]), 64).tags for index in range(500)]
    assert {product for product, _ in tags} == {*SURFACES, *OBJECTS}
    assert {defect for _, defect in tags} == {*DEFECTS, ""}


def test_vocabulary_texts_contain_all_caption_words(scenes: list[Scene]) -> None:
    known = {word for text in vocabulary_texts() for word in text.split()}
    assert {word for scene in scenes for word in scene.caption.split()} <= known


def test_a_local_view_enlarges_the_defect(scenes: list[Scene]) -> None:
    ratios = []
    for index, scene in enumerate(scenes):
        view = crop_view(scene, np.random.default_rng(index), local=True)
        assert view.image.shape == (128, 128, 3)
        assert view.mask.any() == scene.mask.any()
        if scene.mask.any():
            ratios.append(view.mask.mean() / scene.mask.mean())
    assert np.median(ratios) > 1.5


def test_the_whole_view_keeps_the_mask_fraction() -> None:
    scene = next(
        s for s in (render_scene(np.random.default_rng([5, i]), 208) for i in range(50)) if s.mask.mean() > 0.02
    )
    view = crop_view(scene, np.random.default_rng(0), local=False)
    assert view.mask.mean() == pytest.approx(scene.mask.mean(), rel=0.25)


def test_screws_have_a_thread_and_some_have_a_point() -> None:
    """The width of the shank oscillates along the thread and often decreases to a point."""
    build_shape, _ = OBJECTS["threaded"]
    turns, narrow = [], 0
    for seed in range(20):
        x, y = coordinates(256)
        width = (build_shape(np.random.default_rng(seed), x, y).distance < 0).sum(0)[150:]
        slope = np.diff(width)
        slope = slope[slope != 0]
        turns.append(int((np.sign(slope[1:]) != np.sign(slope[:-1])).sum()))
        narrow += width[width > 0][-3:].mean() < 0.6 * width[:20].mean()
    assert np.median(turns) >= 6
    assert narrow >= 5
