"""The Stage table: what the factory does, on what, with which settings and which code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One kind of work on a grid of instances.

    Paths are templates over an instance's fields, relative to the project; code is relative to the folder that
    holds the packages.

    Attributes:
        name: also the name in dvc.yaml and of the Dagster asset.
        grid: the axes that instances vary over: some of `product`, `generator`, `arm`.
        inputs, outputs: files and folders that DVC tracks; an input with a `*` stands for one per product.
        extra: (section, input) pairs: an input that is read where params.yaml has that section.
        metrics: small JSON files that stay in git.
        code: files and folders whose change makes the stage stale.
        params: keys of params.yaml whose change makes it stale.
        pool: limits how many run at once (`gpu`, `cpu`).
        about: one line for people.
        after: stages whose outputs `inputs` are.
        section: section of params.yaml that switches the stage on; "" for a stage that always is.
        capability: what generators must declare for the stage to apply to them (see `Capabilities`); "" for nothing.
        scope: `product` or `catalogue` where the stage is for generators fitted that way only; "" for all.
        persist: whether DVC leaves the outputs of the last run in place for the next one to see.
    """

    name: str
    grid: tuple[str, ...]
    about: str
    inputs: tuple[str, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()
    outputs: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    pool: str = "cpu"
    section: str = ""
    persist: bool = False
    scope: str = ""
    capability: str = ""


_READING = ("defect_core/project/loading.py", "defect_core/data/records.py", "defect_core/generators/base.py")
_TRAINING = (
    "defect_core/training/loop.py",
    "defect_core/training/muon.py",
    "defect_core/data/augment.py",
    "defect_core/data/masks.py",
    "defect_core/backbones/load.py",
    "defect_core/backbones/locate.py",
    "defect_core/backbones/architecture.py",
    "defect_core/backbones/embedded",
)
_SEGMENTING = (
    "defect_core/project/arms.py",
    "defect_core/stages/segment.py",
    "defect_core/evaluation/segmentation",
    "defect_core/metrics/bootstrap.py",
    "defect_core/metrics/curves.py",
    "defect_core/metrics/localisation.py",
    "defect_core/metrics/features.py",
    "defect_core/metrics/spread.py",
    "defect_core/data/manifest.py",
    "defect_core/data/masks.py",
)
_METHOD = (
    "{code}",
    "defect_core/generators/canvas.py",
    "defect_core/generators/composite.py",
    "defect_core/generators/untrained.py",
    "defect_core/generators/views.py",
    "defect_core/data/placement.py",
    "defect_core/diffusion",
    *_TRAINING,
)

STAGES: tuple[Stage, ...] = (
    Stage(
        name="ingest",
        grid=("product",),
        about="Reads real images in any supported layout, checks every file, writes records.",
        inputs=("{source}",),
        outputs=("data/raw/{product}",),
        params=("ingest", "sources.{product}", "seed"),
        code=(
            "defect_core/stages/ingest.py",
            "defect_core/data/layouts",
            "defect_core/data/demo",
            "defect_core/data/records.py",
        ),
    ),
    Stage(
        name="split",
        grid=("product",),
        about="Says which real images train and which test; disjoint by content.",
        inputs=("data/raw/{product}",),
        outputs=("data/split/{product}.parquet",),
        params=("split",),
        code=("defect_core/stages/split.py", "defect_core/data/splits.py", "defect_core/data/records.py"),
        after=("ingest",),
    ),
    Stage(
        name="adapt",
        grid=("product",),
        about="Tunes the backbone to a product's good images; optional.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet"),
        outputs=("data/backbone/{product}",),
        params=("seed", "backbone", "adapt"),
        code=(
            "defect_core/stages/adapt.py",
            "defect_core/adaptation/adapt.py",
            "defect_core/adaptation/normal_sampler.py",
            "defect_core/generators/canvas.py",
            "defect_core/generators/composite.py",
            "defect_core/adaptation/sensor_noise.py",
            "defect_core/generators/views.py",
            "defect_core/data/placement.py",
            "defect_core/diffusion",
            "defect_core/metrics/features.py",
            "defect_core/metrics/frechet.py",
            *_TRAINING,
            *_READING,
        ),
        after=("ingest", "split"),
        pool="gpu",
        section="adapt",
    ),
    Stage(
        name="finetune",
        grid=("product", "generator"),
        about="Few-shot training of one generator on one product's defects.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet", "{backbone}"),
        outputs=("data/generator/{product}/{generator}",),
        params=("seed", "backbone", "finetune.{generator}", "{override}"),
        code=(
            "defect_core/stages/finetune.py",
            *_METHOD,
            *_READING,
        ),
        after=("ingest", "split", "adapt"),
        pool="gpu",
        scope="product",
    ),
    Stage(
        name="finetune_catalogue",
        grid=("generator",),
        about="Few-shot training of one generator on all products together, also those without defects.",
        inputs=("data/raw", "data/split"),
        outputs=("{weights}",),
        params=("seed", "backbone", "products", "finetune.{generator}"),
        code=(
            "defect_core/stages/finetune_catalogue.py",
            "defect_core/backbones/embedded_dit",
            *_METHOD,
            *_READING,
        ),
        after=("ingest", "split"),
        pool="gpu",
        scope="catalogue",
    ),
    Stage(
        name="synthesize",
        grid=("product", "generator"),
        about="Image-mask pairs in bulk, filtered until enough are accepted.",
        inputs=("{raw}", "{split}", "{weights}", "{backbone}"),
        outputs=("data/synthetic/{product}/{generator}",),
        params=("seed", "backbone", "synthesize", "{draw}", "{borrowed}"),
        code=(
            "defect_core/stages/synthesize.py",
            "defect_core/synthesis/batches.py",
            "defect_core/synthesis/filter.py",
            "defect_core/data/manifest.py",
            *_METHOD,
            *_READING,
        ),
        after=("ingest", "split", "adapt", "finetune", "finetune_catalogue"),
        pool="gpu",
    ),
    Stage(
        name="normals",
        grid=("product", "generator"),
        about="Good images by the generators that draw them, and how close they are to the real ones; optional.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet", "{weights}", "{backbone}"),
        outputs=("data/normals/{product}/{generator}",),
        metrics=("metrics/normals/{product}/{generator}.json",),
        params=("seed", "backbone", "normals", "score"),
        code=(
            "defect_core/stages/normals.py",
            "defect_core/metrics",
            "defect_core/data/manifest.py",
            *_METHOD,
            *_READING,
        ),
        after=("ingest", "split", "adapt", "finetune", "finetune_catalogue"),
        pool="gpu",
        section="normals",
        capability="generates_normals",
    ),
    Stage(
        name="score",
        grid=("product", "generator"),
        about="How close synthetic defects are to real ones, how varied, and how far from being copies.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet", "data/synthetic/{product}/{generator}"),
        metrics=("metrics/score/{product}/{generator}.json",),
        params=("seed", "score"),
        code=(
            "defect_core/stages/score.py",
            "defect_core/metrics",
            "defect_core/data/manifest.py",
            "defect_core/data/masks.py",
            *_READING,
        ),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
    ),
    Stage(
        name="segment",
        grid=("product", "arm"),
        about="Trains and tests the segmenter with and without synthetic pairs.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet", "{samples}"),
        outputs=("data/segment/{product}/{arm}",),
        metrics=("metrics/segment/{product}/{arm}.json",),
        params=("seed", "segment"),
        code=(
            *_SEGMENTING,
            *_READING,
        ),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
    ),
    Stage(
        name="segment_unified",
        grid=("arm",),
        about="Trains one segmenter over all products and tests it on each; optional.",
        inputs=("data/raw", "data/split", "{samples*}"),
        outputs=("data/segment_unified/{arm}",),
        metrics=("metrics/segment_unified/{arm}.json",),
        params=("seed", "products", "segment", "segment_unified"),
        code=("defect_core/stages/segment_unified.py", *_SEGMENTING, *_READING),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
        section="segment_unified",
    ),
    Stage(
        name="classify",
        grid=("product", "arm"),
        about="Trains and tests a classifier of the defect types, with and without synthetic pairs; optional.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet", "{samples}"),
        outputs=("data/classify/{product}/{arm}",),
        metrics=("metrics/classify/{product}/{arm}.json",),
        params=("seed", "classify"),
        code=(
            "defect_core/project/arms.py",
            "defect_core/stages/classify.py",
            "defect_core/evaluation/classification",
            "defect_core/evaluation/segmentation/augment.py",
            "defect_core/evaluation/segmentation/data.py",
            "defect_core/evaluation/segmentation/config.py",
            "defect_core/metrics/spread.py",
            "defect_core/data/manifest.py",
            "defect_core/data/masks.py",
            *_READING,
        ),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
        section="classify",
    ),
    Stage(
        name="detect",
        grid=("product",),
        about="Trains PatchCore and DRAEM on good images, with and without generated ones, and tests them; optional.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet"),
        extra=(("normals", "data/normals/{product}"),),
        metrics=("metrics/detect/{product}.json",),
        params=("seed", "detect"),
        code=("defect_core/stages/detect.py", *_SEGMENTING, *_READING),
        after=("ingest", "split", "normals"),
        pool="gpu",
        section="detect",
    ),
    Stage(
        name="release",
        grid=("product",),
        about="Promotes synthetic pairs only if the segmenter is no worse than with the last release and with none.",
        inputs=(
            "data/raw/{product}",
            "data/split/{product}.parquet",
            "data/synthetic/{product}",
            "metrics/segment/{product}",
        ),
        outputs=("data/release/{product}",),
        metrics=("metrics/release/{product}.json",),
        params=("seed", "segment", "release"),
        code=(
            "defect_core/stages/release.py",
            "defect_core/graph/dvcfile.py",
            *_SEGMENTING,
            *_READING,
        ),
        after=("ingest", "split", "synthesize", "segment"),
        pool="gpu",
        section="release",
        persist=True,
    ),
    Stage(
        name="leaderboard",
        grid=(),
        about="One table over all products, generators and arms, and the report.",
        inputs=(
            "metrics/score",
            "metrics/segment",
            "data/synthetic",
            "data/segment",
            "data/generator",
            "data/raw",
            "data/split",
        ),
        extra=(
            ("adapt", "data/backbone"),
            ("segment_unified", "metrics/segment_unified"),
            ("classify", "metrics/classify"),
            ("normals", "metrics/normals"),
            ("normals", "data/normals"),
            ("detect", "metrics/detect"),
        ),
        outputs=("report",),
        metrics=("metrics/leaderboard.json",),
        params=("products", "generators", "arms"),
        code=(
            "defect_core/project/arms.py",
            "defect_core/stages/leaderboard.py",
            "defect_core/report",
            "defect_core/data/manifest.py",
            "defect_core/metrics/spread.py",
            *_READING,
        ),
        after=(
            "ingest",
            "split",
            "adapt",
            "finetune",
            "finetune_catalogue",
            "synthesize",
            "score",
            "segment",
            "segment_unified",
            "classify",
            "normals",
            "detect",
        ),
    ),
)
