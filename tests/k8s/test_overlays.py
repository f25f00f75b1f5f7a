"""Each overlay renders, is what the schemas of Kubernetes and KubeRay allow, and is sound."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer.main
import yaml
from mlflow.cli import cli as mlflow_command
from ray.serve.schema import ServeDeploySchema

from mmtrain.cli import app
from mmtrain.recipe import load_recipe
from mmtrain.serving import serve as serving
from tests.k8s.lint import RAY_KINDS, lint
from tests.k8s.render import canonical, containers, render
from tests.mmtrain.example_bundle import example_bundle

ROOT = Path(__file__).parents[2]
OVERLAYS = ("cpu-small", "gpu", "spot")
KUBERNETES = "1.36"
PARTS = {"platform", "cluster", "build", "train", "tune", "serve"}


def crd_folder() -> Path | None:
    """KubeRay's own schemas: the folder that KUBERAY_CRDS names, or one in a folder beside ours."""
    named = os.environ.get("KUBERAY_CRDS")
    beside = [*ROOT.glob("*/k8s/crds"), *ROOT.parent.glob("*/k8s/crds")]
    return Path(named) if named else next(iter(beside), None)


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def objects(overlay) -> list[dict[str, Any]]:
    return render(ROOT / "k8s" / "overlays" / overlay)


@pytest.fixture(scope="session")
def ray_schemas() -> dict[str, dict[str, Any]]:
    folder = crd_folder()
    if folder is None:
        pytest.skip("KubeRay's CRDs are not on this machine; name their folder in KUBERAY_CRDS")
    found = {}
    for path in folder.glob("ray.io_*.yaml"):
        crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
        (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
        found[crd["spec"]["names"]["kind"]] = closed(version["schema"]["openAPIV3Schema"])
    return found


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused, which the API server drops in silence."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(inner) for key, inner in schema.items()}
    if "properties" in made and isinstance(made["properties"], dict):
        kept = made.get("x-kubernetes-preserve-unknown-fields")
        whole = set(made["properties"]) == {"apiVersion", "kind", "metadata", "spec", "status"}
        if not kept and not whole:
            made.setdefault("additionalProperties", False)
    return made


def check(one: dict[str, Any], schemas: dict[str, dict[str, Any]]) -> None:
    jsonschema.Draft7Validator(schemas[one["kind"]]).validate(one)  # the schema itself is KubeRay's


def ray_objects(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] in RAY_KINDS]


def test_kubectl_renders_the_same(overlay, objects):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on this machine")
    folder = str(ROOT / "k8s" / "overlays" / overlay)
    made = subprocess.run([kubectl, "kustomize", folder], capture_output=True, check=True)
    assert canonical(list(yaml.safe_load_all(made.stdout))) == canonical(objects)


def test_there_is_a_cluster_a_job_for_each_work_a_service_and_mlflow(objects):
    named = {f"{one['kind']}/{one['metadata']['name']}" for one in objects}
    assert {
        "RayCluster/mmtrain", "RayJob/build-quickstart", "RayJob/train-quickstart",
        "RayJob/tune-quickstart", "RayService/quickstart", "Deployment/mlflow",
        "StatefulSet/postgres", "StatefulSet/store", "PodDisruptionBudget/heads",
        "NetworkPolicy/closed",
    } <= named  # fmt: skip
    parts = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in objects}
    assert parts == PARTS


def test_kubernetes_schemas_allow_it(objects):
    for one in objects:
        if one["kind"] not in RAY_KINDS:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_kuberay_schemas_allow_it(objects, ray_schemas):
    for one in ray_objects(objects):
        check(one, ray_schemas)


def test_kuberay_schemas_find_a_field_that_does_not_exist(objects, ray_schemas):
    one = next(one for one in objects if one["kind"] == "RayCluster")
    wrong = {**one, "spec": {**one["spec"], "rayVersions": "2.60.0"}}
    with pytest.raises(jsonschema.ValidationError, match="rayVersions"):
        check(wrong, ray_schemas)


def test_no_known_bad_combination(objects):
    assert [problem for one in objects for problem in lint(one)] == []


def test_every_policy_and_budget_selects_a_pod_that_there_is(objects):
    roles = {"submitter", "ray", "mlflow", "postgres", "store"}
    text = yaml.safe_dump([one for one in objects if one["kind"] not in ("NetworkPolicy",)])
    assert all(f"mmtrain/role: {role}" in text for role in roles)


def test_ray_is_the_version_in_the_image(objects):
    pinned = (ROOT / "cluster" / "constraints.txt").read_text()
    for one in ray_objects(objects):
        spec = one["spec"].get("rayClusterSpec") or one["spec"].get("rayClusterConfig")
        assert f"ray=={(spec or one['spec'])['rayVersion']}\n" in pinned


def test_jobs_run_commands_that_mmtrain_has(objects):
    commands: Any = typer.main.get_command(app)
    for job in (one for one in objects if one["kind"] == "RayJob"):
        program, name, *arguments = shlex.split(job["spec"]["entrypoint"])
        assert program == "mmtrain"
        if name not in commands.commands:
            pytest.fail(f"no command {name}")
        params = commands.commands[name].make_context(name, arguments).params
        assert params["address"] == "auto"
        assert params["recipe"] == "quickstart"
        load_recipe(params["recipe"], params["settings"] or ())
        assert job["spec"]["jobId"] == job["metadata"]["name"]


def test_gpu_runs_ask_for_the_gpus_that_workers_have():
    objects = render(ROOT / "k8s" / "overlays" / "gpu")
    train = next(one for one in objects if one["metadata"]["name"] == "train-quickstart")
    assert "--set use_gpu=true" in train["spec"]["entrypoint"]
    (workers,) = train["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"].endswith("-cuda")


def test_spot_workers_may_go_and_the_head_may_not():
    objects = render(ROOT / "k8s" / "overlays" / "spot")
    spec = next(one for one in objects if one["kind"] == "RayCluster")["spec"]
    (workers,) = spec["workerGroupSpecs"]
    assert workers["template"]["spec"]["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    (terms,) = spec["headGroupSpec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    operators = {one["operator"] for one in terms["matchExpressions"]}
    assert operators == {"DoesNotExist", "NotIn"}


def test_mlflow_knows_every_option_of_its_server(objects):
    server = next(one for one in containers(objects) if one["name"] == "mlflow")
    assert server["command"] == ["mlflow", "server"]
    mlflow_command.commands["server"].make_context("server", list(server["args"]))


def test_the_service_names_an_application_that_there_is(objects):
    service = next(one for one in objects if one["kind"] == "RayService")
    config = ServeDeploySchema(**yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "mmtrain.serving.serve:application"
    assert application.name == serving.APP
    assert serving.Served.model_validate(application.args).models == (
        "models:/quickstart@champion",
    )


def test_the_application_binds_the_models_that_it_is_told(tmp_path, monkeypatch):
    bundle = example_bundle(tmp_path / "bundle")
    monkeypatch.setenv("MMTRAIN_TOKEN", "open sesame")
    made = serving.application(serving.Served(models=(str(bundle),)))
    sources, config = made._bound_deployment.init_args
    assert [source.uri for source in sources] == [str(bundle)]
    assert config.token.get_secret_value() == "open sesame"
    service = next(
        one
        for one in render(ROOT / "k8s" / "overlays" / "spot")
        if one["kind"] == "RayService"
    )  # fmt: skip
    (deployment,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0][
        "deployments"
    ]
    assert made._bound_deployment.name == deployment["name"]


def test_what_our_renderer_cannot_do_it_refuses(tmp_path):
    (tmp_path / "kustomization.yaml").write_text("namePrefix: a-\n")
    with pytest.raises(NotImplementedError, match="namePrefix"):
        render(tmp_path)
