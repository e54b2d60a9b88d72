"""Scores of synthetic images and of downstream models: pure functions, and torchmetrics classes over them.

This package has everything that computes a number from images, masks, features or score maps. It has no project, no
stage and no training. Functions take arrays. Classes take tensors or arrays and follow `torchmetrics.Metric`.
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "binning": ["binned_curve", "count_bins"],
        "bootstrap": ["bootstrap_intervals", "bootstrap_samples", "image_tables"],
        "config": ["ScoreConfig"],
        "curves": ["Curve", "auroc", "average_precision", "f1_max", "overlap_area", "ranking_curve"],
        "distribution_metrics": [
            "FrechetDistance",
            "InceptionScore",
            "IntraClusterDistance",
            "KernelDistance",
            "MaskDiversity",
            "Memorisation",
            "PrecisionRecallDensityCoverage",
        ],
        "diversity": ["mask_diversity"],
        "features": ["InceptionFeatures", "Lite0Features", "LpipsDistance", "TensorExtractor"],
        "folders": ["score_folders"],
        "frechet": ["frechet_distance", "kernel_distance"],
        "inception": ["inception_score"],
        "intra_cluster": ["ic_lpips", "intra_cluster_distance", "mean_pairwise_distance"],
        "localisation": [
            "image_score",
            "intersection_over_union",
            "localisation_scores",
            "overlap_at_thresholds",
            "per_region_overlap",
        ],
        "localisation_metrics": ["ImageAUROC", "ImageAveragePrecision", "ImageF1Max", "LocalisationScores"],
        "neighbours": ["memorisation", "nearest_neighbours", "nearest_pairs"],
        "normal_images": ["score_normals"],
        "pixel_metrics": [
            "IntersectionOverUnion",
            "PerRegionOverlap",
            "PixelAUROC",
            "PixelAveragePrecision",
            "PixelF1Max",
        ],
        "prdc": ["precision_recall"],
        "protocol": ["ImageSets", "ScoreOptions", "score_sets"],
        "spread": ["over_seeds"],
        "store": ["FeatureStore"],
    },
)

if TYPE_CHECKING:
    from defect_core.metrics.binning import binned_curve as binned_curve
    from defect_core.metrics.binning import count_bins as count_bins
    from defect_core.metrics.bootstrap import bootstrap_intervals as bootstrap_intervals
    from defect_core.metrics.bootstrap import bootstrap_samples as bootstrap_samples
    from defect_core.metrics.bootstrap import image_tables as image_tables
    from defect_core.metrics.config import ScoreConfig as ScoreConfig
    from defect_core.metrics.curves import Curve as Curve
    from defect_core.metrics.curves import auroc as auroc
    from defect_core.metrics.curves import average_precision as average_precision
    from defect_core.metrics.curves import f1_max as f1_max
    from defect_core.metrics.curves import overlap_area as overlap_area
    from defect_core.metrics.curves import ranking_curve as ranking_curve
    from defect_core.metrics.distribution_metrics import FrechetDistance as FrechetDistance
    from defect_core.metrics.distribution_metrics import InceptionScore as InceptionScore
    from defect_core.metrics.distribution_metrics import IntraClusterDistance as IntraClusterDistance
    from defect_core.metrics.distribution_metrics import KernelDistance as KernelDistance
    from defect_core.metrics.distribution_metrics import MaskDiversity as MaskDiversity
    from defect_core.metrics.distribution_metrics import Memorisation as Memorisation
    from defect_core.metrics.distribution_metrics import (
        PrecisionRecallDensityCoverage as PrecisionRecallDensityCoverage,
    )
    from defect_core.metrics.diversity import mask_diversity as mask_diversity
    from defect_core.metrics.features import InceptionFeatures as InceptionFeatures
    from defect_core.metrics.features import Lite0Features as Lite0Features
    from defect_core.metrics.features import LpipsDistance as LpipsDistance
    from defect_core.metrics.features import TensorExtractor as TensorExtractor
    from defect_core.metrics.folders import score_folders as score_folders
    from defect_core.metrics.frechet import frechet_distance as frechet_distance
    from defect_core.metrics.frechet import kernel_distance as kernel_distance
    from defect_core.metrics.inception import inception_score as inception_score
    from defect_core.metrics.intra_cluster import ic_lpips as ic_lpips
    from defect_core.metrics.intra_cluster import intra_cluster_distance as intra_cluster_distance
    from defect_core.metrics.intra_cluster import mean_pairwise_distance as mean_pairwise_distance
    from defect_core.metrics.localisation import image_score as image_score
    from defect_core.metrics.localisation import intersection_over_union as intersection_over_union
    from defect_core.metrics.localisation import localisation_scores as localisation_scores
    from defect_core.metrics.localisation import overlap_at_thresholds as overlap_at_thresholds
    from defect_core.metrics.localisation import per_region_overlap as per_region_overlap
    from defect_core.metrics.localisation_metrics import ImageAUROC as ImageAUROC
    from defect_core.metrics.localisation_metrics import ImageAveragePrecision as ImageAveragePrecision
    from defect_core.metrics.localisation_metrics import ImageF1Max as ImageF1Max
    from defect_core.metrics.localisation_metrics import LocalisationScores as LocalisationScores
    from defect_core.metrics.neighbours import memorisation as memorisation
    from defect_core.metrics.neighbours import nearest_neighbours as nearest_neighbours
    from defect_core.metrics.neighbours import nearest_pairs as nearest_pairs
    from defect_core.metrics.normal_images import score_normals as score_normals
    from defect_core.metrics.pixel_metrics import IntersectionOverUnion as IntersectionOverUnion
    from defect_core.metrics.pixel_metrics import PerRegionOverlap as PerRegionOverlap
    from defect_core.metrics.pixel_metrics import PixelAUROC as PixelAUROC
    from defect_core.metrics.pixel_metrics import PixelAveragePrecision as PixelAveragePrecision
    from defect_core.metrics.pixel_metrics import PixelF1Max as PixelF1Max
    from defect_core.metrics.prdc import precision_recall as precision_recall
    from defect_core.metrics.protocol import ImageSets as ImageSets
    from defect_core.metrics.protocol import ScoreOptions as ScoreOptions
    from defect_core.metrics.protocol import score_sets as score_sets
    from defect_core.metrics.spread import over_seeds as over_seeds
    from defect_core.metrics.store import FeatureStore as FeatureStore
