"""The stage table, dvc.yaml and the assets of Dagster are one graph; loading it is cheap."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from defect_core.cli.scaffold import init_project
from defect_core.errors import InputError
from defect_core.graph import code
from defect_core.graph.dvcfile import render
from defect_core.graph.instances import instances, stage_named
from defect_core.graph.local import child_environment
from defect_core.graph.table import STAGES
from defect_core.project.params import Params
from defect_core.project.paths import Project
from pipelines.assets import code_version
from pipelines.definitions import build_definitions
from pipelines.partitions import instance_of, partition_key, partitions_of
from pipelines.stage_views import STAGE_VIEWS
from pipelines.state import reads_from, related_addresses, with_dependants

REPOSITORY = Path(__file__).resolve().parents[2]
ARMS_OF_SET = {  # instances that read the set of crop-paste for nut
    f"{prefix}{arm}"
    for prefix in ("segment@nut-", "classify@nut-", "segment_unified@")
    for arm in ("crop-paste", "crop-paste-at-25", "mix")
}
ARMS = ("real_only", "crop-paste", "crop-paste-at-25", "disentangled-inversion", "mix")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A project with two products, two generators and all arms; nothing has run."""
    root = tmp_path_factory.mktemp("graph")
    root.joinpath("params.yaml").write_text(
        "products: [bolt, nut]\nsources: {bolt: {layout: demo}, nut: {path: images/nut}}\n"
        "generators: [crop-paste, defectdiffu, disentangled-inversion, seas]\n"
        f"arms: [{', '.join(ARMS)}]\nadapt: {{}}\nrelease: {{}}\nclassify: {{}}\nsegment_unified: {{}}\n"
        "normals: {}\ndetect: {}\n"
    )
    return Project(root)


@pytest.fixture(scope="module")
def graph(sample):
    return build_definitions(sample).resolve_asset_graph()


@pytest.fixture(scope="module")
def dvc_deps(sample):
    """The dependencies of each address in the rendered dvc.yaml."""
    dependencies = {}
    for name, block in yaml.safe_load(render(sample))["stages"].items():
        if "foreach" not in block:
            dependencies[name] = block["deps"]
            continue
        for key, item in block["foreach"].items():
            filled = (re.sub(r"\$\{item\.(\w+)\}", lambda m, item=item: item[m[1]], d) for d in block["do"]["deps"])
            dependencies[f"{name}@{key}"] = list(filled)
    return dependencies


def _upstream(graph, stage, name, key):
    """The partitions of an upstream asset on which Dagster makes a partition depend."""
    down, up = graph.get(dg.AssetKey(stage.name)), graph.get(dg.AssetKey(name))
    subset = None if key is None else down.partitions_def.subset_with_partition_keys([key])
    mapping = graph.get_partition_mapping(down.key, up.key)
    result = mapping.get_upstream_mapped_partitions_result_for_partitions(
        subset, down.partitions_def, up.partitions_def
    )
    return set(result.partitions_subset.get_partition_keys())


def test_each_stage_is_one_asset_with_its_description_pool_and_group(graph):
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {stage.name for stage in STAGES}
    for stage in STAGES:
        node = graph.get(dg.AssetKey(stage.name))
        assert (node.description, node.pools, node.kinds) == (stage.about, {stage.pool}, {"dvc"})
        assert node.group_name == stage.group
        assert {key.to_user_string() for key in node.parent_keys} == set(stage.after)


def test_every_stage_has_a_view():
    assert list(STAGE_VIEWS) == [stage.name for stage in STAGES]


def test_a_stage_that_is_switched_off_has_no_asset(sample, tmp_path):
    text = sample.path("params.yaml").read_text()
    for section in ("adapt", "release", "classify", "segment_unified", "normals", "detect"):
        text = text.replace(f"{section}: {{}}\n", "")
    tmp_path.joinpath("params.yaml").write_text(text)
    graph = build_definitions(Project(tmp_path)).resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {s.name for s in STAGES if not s.section}
    assert "adapt" not in {key.to_user_string() for key in graph.get(dg.AssetKey("finetune")).parent_keys}


def test_a_selection_as_text_is_parsed(graph):
    """It fails if the dependencies of DVC install an antlr that is older than Dagster's parser needs."""
    selected = dg.AssetSelection.from_string("+split").resolve(graph)
    assert {key.to_user_string() for key in selected} == {"ingest", "split"}


def test_the_partitions_are_the_instances_of_dvc_yaml(sample, graph, dvc_deps):
    addresses = []
    for stage in STAGES:
        partitions = graph.get(dg.AssetKey(stage.name)).partitions_def
        keys = partitions.get_partition_keys() if stage.grid else [None]
        addresses += [instance_of(stage, key, sample.params).address for key in keys]
    assert len(addresses) == len(set(addresses))
    assert set(addresses) == set(dvc_deps)


def test_a_partition_depends_on_what_its_instance_in_dvc_yaml_reads(sample, graph, dvc_deps):
    cells = [cell for stage in STAGES for cell in instances(stage, sample.params)]
    for cell in cells:
        for name in cell.stage.after:
            read = {
                partition_key(other)
                for other in instances(stage_named(name), sample.params)
                for written in other.outputs + other.metrics
                for path in dvc_deps[cell.address]
                if Path(path).is_relative_to(written) or Path(written).is_relative_to(path)
            }
            assert _upstream(graph, cell.stage, name, partition_key(cell)) == read, (cell.address, name)


@pytest.mark.parametrize(
    ("arm", "generators"),
    [
        ("real_only", []),
        ("crop-paste", ["crop-paste"]),
        ("crop-paste-at-25", ["crop-paste"]),
        ("disentangled-inversion", ["disentangled-inversion"]),
        ("mix", ["crop-paste", "defectdiffu", "disentangled-inversion", "seas"]),
    ],
)
def test_an_arm_depends_on_the_generators_it_trains_on(graph, arm, generators):
    keys = _upstream(graph, stage_named("segment"), "synthesize", dg.MultiPartitionKey({"arm": arm, "product": "nut"}))
    assert keys == {f"{generator}|nut" for generator in generators}


def test_a_key_orders_its_dimensions_alphabetically(sample):
    keys = partitions_of(stage_named("finetune"), sample.params).get_partition_keys()
    assert "crop-paste|bolt" in keys
    with pytest.raises(KeyError, match="reload the definitions"):
        instance_of(stage_named("finetune"), "gone|bolt", sample.params)


def test_dependants_are_found_by_their_files(sample):
    cells = [cell for stage in STAGES for cell in instances(stage, sample.params)]
    dependants = {cell.address for cell in with_dependants(["synthesize@nut-crop-paste"], cells)}
    assert dependants == {
        "synthesize@nut-crop-paste",
        "score@nut-crop-paste",
        "release@nut",
        "leaderboard",
        *ARMS_OF_SET,
    }
    assert with_dependants([], cells) == []
    by_name = {cell.address: cell for cell in cells}
    assert not reads_from(by_name["segment@bolt-real_only"], by_name["synthesize@bolt-crop-paste"])


def test_related_addresses_are_dependencies_and_dependants(sample):
    cells = [cell for stage in STAGES for cell in instances(stage, sample.params)]
    assert related_addresses(["synthesize@nut-crop-paste"], cells) == {
        "ingest@nut",
        "split@nut",
        "adapt@nut",
        "finetune@nut-crop-paste",
        "synthesize@nut-crop-paste",
        "score@nut-crop-paste",
        "release@nut",
        "leaderboard",
        *ARMS_OF_SET,
    }


def test_the_code_version_changes_with_the_code_of_a_stage(sample, monkeypatch, tmp_path):
    shutil.copytree(REPOSITORY / "defect_core", tmp_path / "defect_core")
    monkeypatch.setattr(code, "code_root", lambda: tmp_path)
    before = {stage.name: code_version(stage, sample) for stage in STAGES}
    with (tmp_path / "defect_core/stages/split.py").open("a") as stream:
        stream.write("# changed\n")
    after = {stage.name: code_version(stage, sample) for stage in STAGES}
    assert [name for name in before if before[name] != after[name]] == ["split"]


def test_the_assets_of_a_chain_share_their_partitions(sample, tmp_path):
    names = ("real_data", "synthetic_data", "nightly")
    tmp_path.joinpath("params.yaml").write_text(sample.path("params.yaml").read_text().replace("defectdiffu, ", ""))
    for project, first in ((sample, "synthesize"), (Project(tmp_path), "finetune")):
        jobs = {name: build_definitions(project).resolve_job_def(name) for name in names}
        chain = {key.to_user_string() for key in jobs["synthetic_data"].asset_layer.selected_asset_keys}
        assert chain == {first, "synthesize", "score"}


def test_each_check_is_blocking_or_not(graph):
    is_blocking = {
        (key.asset_key.to_user_string(), key.name): graph.get(key).blocking for key in graph.asset_check_keys
    }
    assert is_blocking == {
        ("ingest", "real_masks_sane"): True,
        ("split", "disjoint_split"): True,
        ("synthesize", "pairs_aligned"): True,
        ("synthesize", "masks_sane"): True,
        ("synthesize", "background_kept"): True,
        ("synthesize", "no_real_image"): True,
        ("synthesize", "enough_accepted"): False,
        ("synthesize", "mask_sizes_like_real"): False,
        ("score", "not_memorised"): False,
        ("segment", "not_worse_than_real_only"): False,
    }
    for key in graph.asset_check_keys:
        assert graph.get(key).partitions_def == graph.get(key.asset_key).partitions_def


def test_each_asset_has_the_owners_of_params_yaml(sample, graph, tmp_path):
    assert {tuple(graph.get(key).owners) for key in graph.get_all_asset_keys()} == {("team:inspection",)}
    text = sample.path("params.yaml").read_text()
    tmp_path.joinpath("params.yaml").write_text(text + "owners: [team:paint_shop]\n")
    other = build_definitions(Project(tmp_path)).resolve_asset_graph()
    assert {tuple(other.get(key).owners) for key in other.get_all_asset_keys()} == {("team:paint_shop",)}
    tmp_path.joinpath("params.yaml").write_text(text + "owners: [Anna]\n")
    with pytest.raises(InputError, match="owners: 'Anna'; expected team:NAME"):
        Project(tmp_path).params  # noqa: B018


def test_the_definitions_load_fast_and_without_torch(sample):
    program = (
        "import sys, time, pipelines.definitions as d\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'timm', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "print(len(d.defs.resolve_all_asset_keys()), sorted(heavy), time.process_time())"
    )
    environment = child_environment(sample)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    count, heavy, seconds = done.stdout.split()
    assert (int(count), heavy) == (len(STAGES), "[]")
    assert float(seconds) < 4, "seconds of CPU time"


def test_a_project_without_products_says_how_to_add_one(tmp_path):
    definitions = build_definitions(init_project(tmp_path / "empty"))
    (spec,) = definitions.resolve_all_asset_specs()
    assert "defectory add-product" in spec.description
    assert not definitions.jobs and not definitions.schedules


def test_a_project_without_generators_loads(tmp_path):
    tmp_path.joinpath("params.yaml").write_text(
        "products: [nut]\nsources: {nut: {layout: demo}}\ngenerators: []\narms: [real_only]\n"
    )
    graph = build_definitions(Project(tmp_path)).resolve_asset_graph()
    assert list(graph.get(dg.AssetKey("finetune")).partitions_def.get_partition_keys()) == []


def test_the_repository_and_new_projects_share_one_workspace_file():
    template = REPOSITORY / "defect_core/cli/templates/workspace.yaml"
    assert (REPOSITORY / "workspace.yaml").read_text() == template.read_text()
    assert Params().arms  # The defaults are valid.
