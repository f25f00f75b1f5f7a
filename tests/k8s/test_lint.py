"""Each rule finds the manifest that breaks it, and nothing in the one that does not."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.lint import RULES, lint
from tests.k8s.render import render

FOLDER = Path(__file__).parents[2] / "k8s"
RULE = {rule.__name__: rule for rule in RULES}


@pytest.fixture(scope="module")
def good() -> dict[str, dict[str, Any]]:
    made = render(FOLDER / "overlays" / "cpu-small")
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in made}


def head(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]


def head_pod(job: dict[str, Any]) -> dict[str, Any]:
    return head(job)["template"]["spec"]


def head_container(job: dict[str, Any]) -> dict[str, Any]:
    return head_pod(job)["containers"][0]


SPOT_TOLERATION = [{"key": "cloud.google.com/gke-spot", "operator": "Exists"}]
PASSWORD = {"name": "POSTGRES_PASSWORD", "value": "a"}
BREAKS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("old_version", lambda job: job.update(apiVersion="ray.io/v1alpha1")),
    ("two_ways_to_delete", lambda job: job["spec"].update(shutdownAfterJobFinishes=True)),
    ("two_ways_to_delete", lambda job: job["spec"].update(ttlSecondsAfterFinished=60)),
    ("never_deleted", lambda job: job["spec"].pop("deletionStrategy")),
    ("never_deleted", lambda job: job["spec"]["deletionStrategy"]["deletionRules"].pop(0)),
    ("submitted_twice", lambda job: job["spec"].pop("submitterConfig")),
    ("submitted_twice", lambda job: job["spec"].update(submitterConfig={"backoffLimit": 2})),
    ("submitted_twice", lambda job: job["spec"].pop("jobId")),
    ("fragile_submission", lambda job: job["spec"].update(submissionMode="HTTPMode")),
    ("fragile_submission", lambda job: job["spec"].update(submissionMode="SidecarMode")),
    ("retried_from_the_start", lambda job: job["spec"].update(entrypoint="mmtrain train a")),
    ("suspended_with_autoscaler", lambda job: job["spec"].update(suspend=True)),
    (
        "suspended_with_autoscaler",
        lambda job: job["metadata"]["labels"].update({"kueue.x-k8s.io/queue-name": "a"}),
    ),
    ("open_to_anyone", lambda job: job["spec"]["rayClusterSpec"].pop("authOptions")),
    (
        "open_to_anyone",
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(enableK8sTokenAuth=True),
    ),
    ("exposed", lambda job: head(job).update(serviceType="LoadBalancer")),
    ("work_on_the_head", lambda job: head(job)["rayStartParams"].pop("num-cpus")),
    ("head_on_spot", lambda job: head_pod(job).update(tolerations=SPOT_TOLERATION)),
    ("without_bounds", lambda job: head_container(job)["resources"].pop("limits")),
    ("without_bounds", lambda job: head_container(job)["resources"]["requests"].pop("memory")),
    ("with_rights", lambda job: head_container(job).pop("securityContext")),
    (
        "with_rights",
        lambda job: head_container(job)["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    ("as_root", lambda job: head_pod(job)["securityContext"].update(runAsUser=0)),
    ("as_root", lambda job: head_pod(job).pop("securityContext")),
    ("floating_image", lambda job: head_container(job).update(image="ghcr.io/a/mmtrain")),
    ("floating_image", lambda job: head_container(job).update(image="a:5000/mmtrain:latest")),
    ("secret_in_the_open", lambda job: head_container(job)["env"].append(PASSWORD)),
]


@pytest.mark.parametrize(("rule", "spoil"), BREAKS)
def test_a_broken_job_is_found_by_its_rule(good, rule, spoil):
    job = good["RayJob/train-quickstart"]
    assert list(RULE[rule](job)) == []
    bad = copy.deepcopy(job)
    spoil(bad)
    assert list(RULE[rule](bad)) != []


def test_a_service_open_to_the_world_is_found(good):
    bad = copy.deepcopy(good["Service/mlflow"])
    bad["spec"]["type"] = "LoadBalancer"
    assert lint(bad) == ["exposed: type LoadBalancer opens it beyond the cluster"]


def test_a_secret_among_the_manifests_is_found():
    assert lint({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}) == [
        "secret_in_the_open: a secret in the repository"
    ]


def test_every_rule_has_a_manifest_that_breaks_it():
    assert {rule for rule, _ in BREAKS} == set(RULE)
