"""The stage table: what each stage does, on which instances, with which inputs and settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One kind of work on a grid of instances.

    Paths are templates over the fields of an instance, relative to the project. The code of a stage is not listed: it
    is computed from its imports (see `defect_core.graph.code`).

    Attributes:
        name: name in dvc.yaml and of the Dagster asset; `defect_core.stages.<name>` does the work.
        grid: the axes that instances vary over: some of `product`, `generator`, `arm`.
        about: one line for people.
        group: group of the Dagster asset.
        inputs: files and folders that DVC tracks; an input with a `*` stands for one per product.
        optional_inputs: (section, input) pairs: an input that is read if params.yaml has that section.
        outputs: files and folders that the stage writes and DVC tracks.
        metrics: small JSON files that git tracks.
        params: keys of params.yaml whose change makes the stage stale.
        after: stages whose outputs are among the inputs.
        pool: limits how many instances run at once (`gpu`, `cpu`).
        section: section of params.yaml that switches the stage on; "" if the stage is always on.
        persist: whether DVC leaves the outputs of the last run in place for the next one to read.
        runs_generator: whether the stage runs the code of a generator.
        scope: `product` or `catalogue` if the stage is for generators with that scope only; "" for all.
        capability: what generators must declare for the stage to apply to them (see `Capabilities`); "" for nothing.
    """

    name: str
    grid: tuple[str, ...]
    about: str
    group: str
    inputs: tuple[str, ...] = ()
    optional_inputs: tuple[tuple[str, str], ...] = ()
    outputs: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    pool: str = "cpu"
    section: str = ""
    persist: bool = False
    runs_generator: bool = False
    scope: str = ""
    capability: str = ""


RAW, SPLIT = "data/raw/{product}", "data/split/{product}.parquet"

STAGES: tuple[Stage, ...] = (
    Stage(
        name="ingest",
        grid=("product",),
        about="Reads real images in any supported layout, checks every file, writes records.",
        group="real_data",
        inputs=("{source}",),
        outputs=(RAW,),
        params=("ingest", "sources.{product}", "seed"),
    ),
    Stage(
        name="split",
        grid=("product",),
        about="Divides real images into training and test images; disjoint by content.",
        group="real_data",
        inputs=(RAW,),
        outputs=(SPLIT,),
        params=("split",),
        after=("ingest",),
    ),
    Stage(
        name="adapt",
        grid=("product",),
        about="Fine-tunes the backbone on the normal images of a product; optional.",
        group="generators",
        inputs=(RAW, SPLIT),
        outputs=("data/backbone/{product}",),
        params=("seed", "backbone", "compute", "adapt"),
        after=("ingest", "split"),
        pool="gpu",
        section="adapt",
    ),
    Stage(
        name="finetune",
        grid=("product", "generator"),
        about="Few-shot training of one generator on the defects of one product.",
        group="generators",
        inputs=(RAW, SPLIT, "{backbone}"),
        outputs=("data/generator/{product}/{generator}",),
        params=("seed", "backbone", "compute", "finetune.{generator}", "{override}"),
        after=("ingest", "split", "adapt"),
        pool="gpu",
        runs_generator=True,
        scope="product",
    ),
    Stage(
        name="finetune_catalogue",
        grid=("generator",),
        about="Few-shot training of one generator on all products together, including those without defects.",
        group="generators",
        inputs=("data/raw", "data/split"),
        outputs=("{weights}",),
        params=("seed", "backbone", "compute", "products", "finetune.{generator}"),
        after=("ingest", "split"),
        pool="gpu",
        runs_generator=True,
        scope="catalogue",
    ),
    Stage(
        name="synthesize",
        grid=("product", "generator"),
        about="Generates image-mask pairs until the filter has accepted enough.",
        group="synthetic",
        inputs=("{raw}", "{split}", "{weights}", "{backbone}"),
        outputs=("data/synthetic/{product}/{generator}",),
        params=("seed", "backbone", "compute", "synthesize", "{placement}", "{regeneration}", "{borrowed}"),
        after=("ingest", "split", "adapt", "finetune", "finetune_catalogue"),
        pool="gpu",
        runs_generator=True,
    ),
    Stage(
        name="normals",
        grid=("product", "generator"),
        about="Generates normal images and measures how close they are to real ones; optional.",
        group="synthetic",
        inputs=(RAW, SPLIT, "{weights}", "{backbone}"),
        outputs=("data/normals/{product}/{generator}",),
        metrics=("metrics/normals/{product}/{generator}.json",),
        params=("seed", "backbone", "compute", "normals", "score"),
        after=("ingest", "split", "adapt", "finetune", "finetune_catalogue"),
        pool="gpu",
        section="normals",
        runs_generator=True,
        capability="generates_normals",
    ),
    Stage(
        name="score",
        grid=("product", "generator"),
        about="Measures how close synthetic defects are to real ones, how diverse, and how far from copies.",
        group="evaluation",
        inputs=(RAW, SPLIT, "data/synthetic/{product}/{generator}"),
        metrics=("metrics/score/{product}/{generator}.json",),
        params=("seed", "score"),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
    ),
    Stage(
        name="segment",
        grid=("product", "arm"),
        about="Trains and tests the segmenter with and without synthetic pairs.",
        group="evaluation",
        inputs=(RAW, SPLIT, "{samples}"),
        outputs=("data/segment/{product}/{arm}",),
        metrics=("metrics/segment/{product}/{arm}.json",),
        params=("seed", "segment"),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
    ),
    Stage(
        name="segment_unified",
        grid=("arm",),
        about="Trains one segmenter over all products and tests it on each; optional.",
        group="evaluation",
        inputs=("data/raw", "data/split", "{samples*}"),
        outputs=("data/segment_unified/{arm}",),
        metrics=("metrics/segment_unified/{arm}.json",),
        params=("seed", "products", "segment", "segment_unified"),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
        section="segment_unified",
    ),
    Stage(
        name="classify",
        grid=("product", "arm"),
        about="Trains and tests a classifier of the defect types, with and without synthetic pairs; optional.",
        group="evaluation",
        inputs=(RAW, SPLIT, "{samples}"),
        outputs=("data/classify/{product}/{arm}",),
        metrics=("metrics/classify/{product}/{arm}.json",),
        params=("seed", "classify"),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
        section="classify",
    ),
    Stage(
        name="detect",
        grid=("product",),
        about="Trains and tests PatchCore and DRAEM on normal images, with and without generated ones; optional.",
        group="evaluation",
        inputs=(RAW, SPLIT),
        optional_inputs=(("normals", "data/normals/{product}"),),
        metrics=("metrics/detect/{product}.json",),
        params=("seed", "detect"),
        after=("ingest", "split", "normals"),
        pool="gpu",
        section="detect",
    ),
    Stage(
        name="release",
        grid=("product",),
        about="Promotes synthetic pairs if the segmenter is shown to be no worse than without them and than released.",
        group="release",
        inputs=(RAW, SPLIT, "data/synthetic/{product}", "data/segment/{product}", "metrics/segment/{product}"),
        outputs=("data/release/{product}",),
        metrics=("metrics/release/{product}.json",),
        params=("seed", "segment", "release"),
        after=("ingest", "split", "synthesize", "segment"),
        pool="gpu",
        section="release",
        persist=True,
    ),
    Stage(
        name="leaderboard",
        grid=(),
        about="Writes one table over all products, generators and arms, and the report.",
        group="evaluation",
        inputs=(
            "metrics/score",
            "metrics/segment",
            "data/synthetic",
            "data/segment",
            "data/generator",
            "data/raw",
            "data/split",
        ),
        optional_inputs=(
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
