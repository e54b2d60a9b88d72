"""The files in deploy/ match the schemas of Dagster and Kubernetes, and every name in them is defined."""

import configparser
import importlib.util
from pathlib import Path

import dagster as dg
import pytest
import yaml

from defect_core.project.paths import Project
from pipelines import kubernetes
from pipelines.assets import build_assets
from pipelines.definitions import build_definitions

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
needs_k8s = pytest.mark.skipif(
    importlib.util.find_spec("dagster_k8s") is None, reason="dagster-k8s is not installed; pip install 'defectory[k8s]'"
)


@pytest.fixture(scope="module")
def objects():
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


@pytest.fixture(scope="module")
def launcher():
    return yaml.safe_load((DEPLOY / "dagster.yaml").read_text())["run_launcher"]["config"]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "params.yaml").write_text("products: [bolt]\nsources: {bolt: {layout: demo}}\n")
    return Project(tmp_path)


@needs_k8s
def test_dagster_yaml_matches_the_schemas_of_dagster(launcher, monkeypatch):
    import dagster_k8s
    from dagster._config import process_config, resolve_to_config_type
    from dagster._core.instance.config import dagster_instance_config

    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "x")
    config, _ = dagster_instance_config(str(DEPLOY))
    assert config["concurrency"]["pools"]["granularity"] == "op"
    schema = resolve_to_config_type(dagster_k8s.K8sRunLauncher.config_type())
    result = process_config(schema, launcher)
    assert result.success, result.errors
    assert not process_config(schema, {**launcher, "job_imaeg": "x"}).success, "unknown keys must fail"


@needs_k8s
def test_each_object_matches_the_model_of_kubernetes(objects):
    from dagster_k8s.models import k8s_snake_case_dict
    from kubernetes.client import models

    for item in objects:
        content = {name: value for name, value in item.items() if name not in ("apiVersion", "kind")}
        assert k8s_snake_case_dict(getattr(models, f"V1{item['kind']}"), content), item["kind"]
    invalid = {"spec": {"accessMode": ["ReadWriteMany"]}}
    with pytest.raises(Exception, match="accessMode"):
        k8s_snake_case_dict(models.V1PersistentVolumeClaim, invalid)


@needs_k8s
def test_the_pod_of_a_gpu_step_has_a_gpu_the_project_and_the_runner(project, launcher, monkeypatch):
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

    monkeypatch.setenv("DEFECTORY_RUNNER", "kubernetes")
    assert build_definitions(project).executor.name == "k8s"
    finetune = next(asset for asset in build_assets(project) if asset.key == dg.AssetKey("finetune"))
    tag = dict(finetune.op.tags)[kubernetes.CONFIG_TAG]
    requested = UserDefinedDagsterK8sConfig.from_dict(yaml.safe_load(tag) if isinstance(tag, str) else tag)
    settings = {name: launcher[name] for name in ("volumes", "volume_mounts", "env_vars", "run_k8s_config")}
    context = K8sContainerContext.create_from_config({"k8s": settings})
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image=launcher["job_image"], dagster_home=launcher["dagster_home"]),
        ["dagster"], "step", context.merge(K8sContainerContext(run_k8s_config=requested)).run_k8s_config,
        env_vars=[{"name": "DEFECTORY_RUNNER", "value": "kubernetes"}],
    )  # fmt: skip
    (container,) = job.to_dict()["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert {"name": "project", "mount_path": "/project"}.items() <= container["volume_mounts"][0].items()


def test_without_kubernetes_no_step_requests_a_pod(project, monkeypatch):
    monkeypatch.delenv("DEFECTORY_RUNNER", raising=False)
    assert kubernetes.step_tags("gpu") == {}
    assert kubernetes.executor() is dg.in_process_executor
    assert build_definitions(project).executor is dg.in_process_executor
    monkeypatch.setenv("DEFECTORY_RUNNER", "kubernetes")
    assert kubernetes.step_tags("cpu") == {} and kubernetes.step_tags("gpu")
    monkeypatch.setenv("DEFECTORY_GPU_RESOURCE", "")
    assert kubernetes.step_tags("gpu") == {}


def test_each_used_name_is_defined(objects, launcher):
    defined = {
        kind: {o["metadata"]["name"] for o in objects if o["kind"] == kind} for kind in {o["kind"] for o in objects}
    }
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    for name in [*kustomization["resources"], *(f for g in kustomization["configMapGenerator"] for f in g["files"])]:
        assert (DEPLOY / name).is_file()
    maps = {generator["name"] for generator in kustomization["configMapGenerator"]}
    readme = (DEPLOY / "README.md").read_text()
    pods = [o["spec"]["template"]["spec"] for o in objects if o["kind"] in ("Deployment", "StatefulSet")]
    assert len(pods) == 3
    for pod in pods:
        assert pod.get("serviceAccountName", "defectory") in defined["ServiceAccount"]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim in defined["PersistentVolumeClaim"] or volume["configMap"]["name"] in maps
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys() | {"data"}
            for variable in container["env"]:
                secret = variable.get("valueFrom", {}).get("secretKeyRef", {}).get("name")
                assert secret is None or f"secret generic {secret}" in readme, "the README must say how to create it"
    for item in objects:
        if item["kind"] != "Namespace":
            assert item["metadata"]["namespace"] in defined["Namespace"]
        if item["kind"] == "Service":
            selector = item["spec"]["selector"]
            labels = [o["spec"]["template"]["metadata"]["labels"] for o in objects if "template" in o.get("spec", {})]
            assert selector in labels
    assert launcher["job_namespace"] in defined["Namespace"]
    assert launcher["service_account_name"] in defined["ServiceAccount"]
    assert launcher["instance_config_map"] in maps
    assert {v["persistent_volume_claim"]["claim_name"] for v in launcher["volumes"]} <= defined["PersistentVolumeClaim"]
    images = {c["image"] for pod in pods for c in pod["containers"]} - {"postgres:16"}
    assert images == {launcher["job_image"]}
    image = (DEPLOY / "Dockerfile").read_text()
    assert f"DAGSTER_HOME={launcher['dagster_home']} " in image and "DEFECTORY_PROJECT=/project" in image
    for line in image.splitlines():
        if line.startswith("COPY"):
            assert all((DEPLOY.parent / name).exists() for name in line.split()[1:-1]), line


def test_the_service_file_is_well_formed():
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str
    unit.read_string((DEPLOY / "defectory.service").read_text())
    assert unit.sections() == ["Unit", "Service", "Install"]
    assert importlib.util.find_spec(unit["Service"]["ExecStart"].split()[2]) is not None
