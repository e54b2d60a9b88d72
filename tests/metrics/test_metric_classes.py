"""The torchmetrics classes: torchmetrics' own classes, pure functions, collections, copies and processes."""

import pickle
import socket

import numpy as np
import pytest
import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision, BinaryJaccardIndex

from defect_core.metrics.distribution_metrics import (
    FrechetDistance,
    InceptionScore,
    IntraClusterDistance,
    KernelDistance,
    MaskDiversity,
    Memorisation,
    PrecisionRecallDensityCoverage,
)
from defect_core.metrics.diversity import mask_diversity
from defect_core.metrics.features import TensorExtractor
from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.inception import inception_score
from defect_core.metrics.localisation import localisation_scores
from defect_core.metrics.localisation_metrics import (
    ImageAUROC,
    ImageAveragePrecision,
    ImageF1Max,
    LocalisationScores,
)
from defect_core.metrics.neighbours import memorisation
from defect_core.metrics.pixel_metrics import (
    IntersectionOverUnion,
    PerRegionOverlap,
    PixelAUROC,
    PixelAveragePrecision,
    PixelF1Max,
)
from defect_core.metrics.prdc import precision_recall

pytestmark = pytest.mark.filterwarnings("ignore:.*was called before the:UserWarning")  # compute without update
NAMES = {
    "pixel_auroc": PixelAUROC(),
    "pixel_ap": PixelAveragePrecision(),
    "pixel_f1_max": PixelF1Max(),
    "pro": PerRegionOverlap(),
    "iou": IntersectionOverUnion(),
    "image_auroc": ImageAUROC(),
    "image_ap": ImageAveragePrecision(),
    "image_f1_max": ImageF1Max(),
}


def _maps(seed=0, count=9):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 1, 12, 10, generator=generator) > 0.9
    masks[::3] = False
    return torch.rand(masks.shape, generator=generator).round(decimals=2) * 0.7 + 0.3 * masks, masks


def _rows(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(9, 4)), rng.normal(size=(8, 4)) + 0.5


def _localisation_classes():
    return MetricCollection({name: metric.clone() for name, metric in NAMES.items()})


def _gray(*values):
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def _mean_of_channels(images):
    return images.float().mean((2, 3))


def test_pixel_scores_equal_torchmetrics():
    maps, masks = _maps()
    reference = MetricCollection([BinaryAUROC(), BinaryAveragePrecision(), BinaryJaccardIndex(threshold=0.5)])
    reference.update(maps.flatten(), masks.flatten().int())
    auroc, average_precision, jaccard = (value.item() for value in reference.compute().values())
    ours = _localisation_classes()
    ours.update(maps, masks)
    values = ours.compute()
    assert values["pixel_auroc"].item() == pytest.approx(auroc, abs=1e-6)
    assert values["pixel_ap"].item() == pytest.approx(average_precision, abs=1e-6)
    assert values["iou"].item() == pytest.approx(jaccard, abs=1e-6)


@pytest.mark.parametrize("thresholds", [None, "binned"])
def test_a_collection_equals_the_pure_function_for_every_input_form(thresholds):
    maps, masks = _maps()
    arrays = maps.numpy(), masks.numpy()
    expected = localisation_scores(arrays[0][:, 0], arrays[1][:, 0])
    forms = [(maps, masks), (maps[:, 0], masks[:, 0].int()), arrays, (list(arrays[0][:, 0]), list(arrays[1][:, 0]))]
    for scores, labels in forms:
        everything = LocalisationScores(thresholds=thresholds)
        collection = _localisation_classes()
        for start in (0, 4):
            batch = slice(start, start + 4 if start == 0 else None)
            everything.update(scores[batch], labels[batch])
            collection.update(scores[batch], labels[batch])
        assert {name: everything.compute()[name].item() for name in NAMES} == {n: expected[n] for n in NAMES}
        assert {name: value.item() for name, value in collection.compute().items()} == {n: expected[n] for n in NAMES}
    assert len(collection.compute_groups) == 4  # pixels, pixels with regions, counts, images


def test_forward_returns_the_score_of_the_batch_and_compute_of_all():
    maps, masks = _maps()
    for metric in [*(metric.clone() for metric in NAMES.values()), PixelAUROC(thresholds="binned")]:
        whole = metric.clone()
        whole.update(maps[:5], masks[:5])
        assert metric(maps[:5], masks[:5]).item() == whole.compute().item()
        metric(maps[5:], masks[5:])
        whole.update(maps[5:], masks[5:])
        assert metric.compute().shape == () and metric.compute().item() == whole.compute().item()


def test_undefined_scores_are_nan_and_reset_empties_the_state():
    metric = LocalisationScores()
    metric.update(*_maps())
    metric.reset()
    metric.update(torch.rand(2, 8, 8), torch.zeros(2, 8, 8))
    assert all(value.isnan() for value in metric.compute().values())
    with pytest.raises(ValueError, match="thresholds: found 5"):
        PixelAUROC(thresholds=5)
    with pytest.raises(ValueError, match="4 or 8"):
        PerRegionOverlap(connectivity=6)
    with pytest.raises(ValueError, match=r"\[B,1,H,W\]"):
        metric.update(torch.rand(8, 8), torch.zeros(8, 8))


def _set_metrics():
    return MetricCollection(
        {
            "frechet": FrechetDistance(),
            "kernel": KernelDistance(subsets=3, subset_size=5, seed=1),
            "prdc": PrecisionRecallDensityCoverage(k=2),
            "memorisation": Memorisation(),
        }
    )


def _assert_set_scores(values, real, generated):
    assert values["frechet"].item() == frechet_distance(real, generated)
    assert values["kernel"].item() == kernel_distance(real, generated, 1, 3, 5).mean
    expected = precision_recall(real, generated, 2)
    for name in ("precision", "recall", "density", "coverage"):
        assert values[name].item() == getattr(expected, name)
    nearest = memorisation(generated, real)
    assert values["memorisation_ratio"].item() == nearest.ratio
    assert values["memorisation_copies"].item() == nearest.copies


def test_set_classes_equal_their_functions_for_any_batches():
    real, generated = _rows()
    metrics = _set_metrics()
    for _ in range(2):
        for start in range(0, 9, 4):
            metrics.update(torch.from_numpy(real[start : start + 4]), real=True)
        metrics.update(generated[:3], real=False)
        metrics.update(generated[3:], real=False)
        _assert_set_scores(metrics.compute(), real, generated)
        metrics.reset()
    with pytest.raises(ValueError, match="two rows"):
        FrechetDistance().compute()
    with pytest.raises(ValueError, match="at least one"):
        Memorisation().compute()


def test_inception_score_and_mask_diversity_equal_their_functions():
    rng = np.random.default_rng(0)
    probabilities, masks = rng.dirichlet(np.ones(5), 7), rng.random((7, 6, 6)) > 0.6
    score, diversity = InceptionScore(splits=2), MaskDiversity()
    for start in (0, 4):
        score.update(probabilities[start : start + 4 if start == 0 else None])
        diversity.update(masks[start : start + 4 if start == 0 else None, None])
    assert score.compute().item() == inception_score(probabilities, 2)
    assert [value.item() for value in diversity.compute().values()] == list(mask_diversity(masks))
    with pytest.raises(ValueError, match="expected at least two"):
        MaskDiversity().compute()


def test_a_feature_extractor_is_a_module_or_an_adapted_network():
    images, network = _gray(1, 5, 9), torch.nn.Flatten()
    module = FrechetDistance(torch.nn.Sequential(network, torch.nn.Identity()))
    adapted = FrechetDistance(TensorExtractor(lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1).astype(np.float32)))
    for metric in (module, adapted):
        metric.update(images, real=True)
        metric.update(_gray(2, 3), real=False)
    assert module.compute() == adapted.compute() > 0
    with pytest.raises(ValueError, match=r"uint8 \[B,3,H,W\]"):
        module.update(images.float(), real=True)
    with pytest.raises(ValueError, match=r"\[B,D\]"):
        FrechetDistance().update(images, real=True)


def _all_metrics():
    maps, rows = _maps(), _rows()
    updates: list[tuple[Metric, list[dict]]] = [
        (metric.clone(), [{"score_maps": maps[0], "masks": maps[1]}]) for metric in NAMES.values()
    ]
    updates += [
        (LocalisationScores(thresholds=thresholds), [{"score_maps": maps[0], "masks": maps[1]}])
        for thresholds in (None, "binned")
    ]
    both = [{"images": rows[0], "real": True}, {"images": rows[1], "real": False}]
    updates += [(metric.clone(), both) for metric in _set_metrics().values()]
    updates += [(InceptionScore(), [{"images": np.eye(3)}]), (MaskDiversity(), [{"masks": maps[1]}])]
    updates += [(IntraClusterDistance(_mean_of_channels, _gray(0, 200)), [{"images": _gray(1, 4, 190, 170, 6)}])]
    return updates


def _flat(value):
    return [v.item() for v in value.values()] if isinstance(value, dict) else [value.item()]


def test_copies_and_pickles_continue_independently_of_the_original():
    for metric, updates in _all_metrics():
        for update in updates:
            metric.update(**update)
        copies = [metric.clone(), pickle.loads(pickle.dumps(metric))]
        value = _flat(metric.compute())
        metric.reset()
        assert [_flat(copy.compute()) for copy in copies] == [value, value], metric


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_states_and_results_are_on_the_device_of_the_metric():
    for metric, updates in _all_metrics():
        on_cpu = metric.clone()
        metric.to("cuda")
        for update in updates:
            metric.update(**{name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in update.items()})
            on_cpu.update(**update)
        value = metric.compute()
        assert {v.device.type for v in (value.values() if isinstance(value, dict) else [value])} == {"cuda"}
        assert _flat(metric.to("cpu").compute()) == pytest.approx(_flat(on_cpu.compute()), rel=1e-9)


def _split(value, part):
    return value[part] if isinstance(value, torch.Tensor | np.ndarray) else value


def test_synchronised_halves_equal_one_metric():
    for whole, updates in _all_metrics():
        halves = [whole.clone(), whole.clone()]
        for update in updates:
            whole.update(**update)
            for half, part in zip(halves, (slice(None, 2), slice(2, None)), strict=True):
                half.update(**{name: _split(value, part) for name, value in update.items()})
        states = halves[1].metric_state.values()
        others = iter([torch.cat(state) if isinstance(state, list) else state for state in states])
        halves[0].sync(
            dist_sync_fn=lambda state, group, others=others: [state, next(others)], distributed_available=lambda: True
        )
        halves[0]._is_synced = False  # so that `compute` uses the synchronised state
        halves[0]._to_sync = False
        assert _flat(halves[0].compute()) == pytest.approx(_flat(whole.compute()), abs=1e-12), whole


def _evaluate_part(rank, port, folder):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    maps, masks = _maps()
    collection, everything, sets = _localisation_classes(), LocalisationScores(thresholds="binned"), _set_metrics()
    clusters = IntraClusterDistance(_mean_of_channels, _gray(0, 200))
    part = slice(0, 6) if rank == 0 else slice(6, None)
    collection.update(maps[part], masks[part])
    everything.update(maps[part], masks[part])
    clusters.update(_gray(1, 4, 190, 170, 6)[: 2 + rank] if rank == 0 else _gray(190, 170, 6))
    for rows, real in zip(_rows(), (True, False), strict=True):
        sets.update(rows[:5] if rank == 0 else rows[5:], real=real)
    result = [collection.compute(), everything.compute(), sets.compute(), clusters.compute()]
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # each process imports torch and torchmetrics
def test_two_processes_compute_the_scores_of_all_images(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_evaluate_part, (port, str(tmp_path)), nprocs=2)
    maps, masks = _maps()
    expected = localisation_scores(maps[:, 0].numpy(), masks[:, 0].numpy())
    clusters = IntraClusterDistance(_mean_of_channels, _gray(0, 200))
    clusters.update(_gray(1, 4, 190, 170, 6))
    for rank in range(2):
        localisation, everything, sets, distance = torch.load(tmp_path / f"{rank}.pt")
        for name in NAMES:
            assert localisation[name].item() == pytest.approx(expected[name], abs=1e-12)
            assert everything[name].item() == pytest.approx(expected[name], abs=1e-12)
        _assert_set_scores(sets, *_rows())
        assert distance == clusters.compute()
