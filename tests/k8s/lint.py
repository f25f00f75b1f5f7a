"""Combinations that Kubernetes takes and that go wrong on a cluster; each rule says how.

A rule reads one object and yields what is wrong with it.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.k8s.render import containers

Rule = Callable[[dict[str, Any]], Iterator[str]]
RAY_KINDS = ("RayCluster", "RayJob", "RayService")
SPOT = ("spot", "SPOT", "preemptible")


def lint(one: dict[str, Any]) -> list[str]:
    """All that is wrong with an object, by the rule's name."""
    return [f"{rule.__name__}: {problem}" for rule in RULES for problem in rule(one)]


def cluster_spec(one: dict[str, Any]) -> dict[str, Any]:
    field = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(one["kind"])
    return one["spec"].get(field, {}) if field else one["spec"]


def old_version(one: dict[str, Any]) -> Iterator[str]:
    if one["apiVersion"].startswith("ray.io/") and one["apiVersion"] != "ray.io/v1":
        yield f"{one['apiVersion']} is deprecated"


def two_ways_to_delete(one: dict[str, Any]) -> Iterator[str]:
    spec = one["spec"] if one["kind"] == "RayJob" else {}
    if "deletionStrategy" in spec:
        for field in ("shutdownAfterJobFinishes", "ttlSecondsAfterFinished"):
            if field in spec:
                yield f"deletionStrategy and {field}: the job is refused"


def never_deleted(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] == "RayJob":
        rules = one["spec"].get("deletionStrategy", {}).get("deletionRules", ())
        ends = {rule["condition"].get("jobStatus") for rule in rules}
        for missing in {"SUCCEEDED", "FAILED"} - ends:
            yield f"nothing deletes the cluster of a job that has {missing}"


def submitted_twice(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] == "RayJob":
        if one["spec"].get("submitterConfig", {}).get("backoffLimit") != 0:
            yield "submitterConfig.backoffLimit is not 0: the submitter is tried three times"
        if not one["spec"].get("jobId"):
            yield "no jobId: another submission is another job"


def fragile_submission(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] == "RayJob" and one["spec"].get("submissionMode") != "K8sJobMode":
        yield f"submissionMode {one['spec'].get('submissionMode')}: resubmits or dies with the head"


def retried_from_the_start(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] == "RayJob" and one["spec"].get("backoffLimit", 0) > 0:
        words = one["spec"]["entrypoint"].split()
        if "--resume" not in words and "build" not in words:
            yield "backoffLimit without --resume: a retry starts over or is refused"


def suspended_with_autoscaler(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] in RAY_KINDS and cluster_spec(one).get("enableInTreeAutoscaling"):
        if one["spec"].get("suspend"):
            yield "suspend with the autoscaler: the head is killed"
        if "kueue.x-k8s.io/queue-name" in one["metadata"].get("labels", {}):
            yield "a Kueue queue with the autoscaler: the head is killed when it is suspended"


def open_to_anyone(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] not in RAY_KINDS:
        return
    authentication = cluster_spec(one).get("authOptions", {})
    if authentication.get("mode") != "token":
        yield "authOptions.mode is not token: who reaches the dashboard runs code"
    if one["kind"] == "RayJob" and authentication.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth does not work with a RayJob"


def exposed(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] == "Service" and one["spec"].get("type") in ("NodePort", "LoadBalancer"):
        yield f"type {one['spec']['type']} opens it beyond the cluster"
    if one["kind"] in RAY_KINDS:
        service = cluster_spec(one).get("headGroupSpec", {}).get("serviceType", "ClusterIP")
        if service != "ClusterIP":
            yield f"headGroupSpec.serviceType {service} opens the dashboard beyond the cluster"


def work_on_the_head(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] in RAY_KINDS:
        given = cluster_spec(one).get("headGroupSpec", {}).get("rayStartParams", {})
        if given.get("num-cpus") != "0":
            yield 'head without num-cpus "0": work may end Ray itself'


def head_on_spot(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] in RAY_KINDS:
        pod = cluster_spec(one).get("headGroupSpec", {}).get("template", {}).get("spec", {})
        wanted = json.dumps([pod.get("tolerations", ()), pod.get("nodeSelector", {})])
        if any(word in wanted for word in SPOT):
            yield "the head tolerates spot nodes: the whole cluster goes with it"


def without_bounds(one: dict[str, Any]) -> Iterator[str]:
    for container in containers(one):
        resources = container.get("resources", {})
        for side in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(resources.get(side, {})):
                yield f"container {container['name']} has no {side} of cpu and memory"


def with_rights(one: dict[str, Any]) -> Iterator[str]:
    for container in containers(one):
        context = container.get("securityContext", {})
        closed = (
            context.get("allowPrivilegeEscalation") is False
            and context.get("readOnlyRootFilesystem") is True
            and context.get("capabilities") == {"drop": ["ALL"]}
        )
        if not closed:
            yield f"container {container['name']} may write its image or gain rights"


def as_root(one: dict[str, Any]) -> Iterator[str]:
    for pod in pods(one):
        context = pod.get("securityContext", {})
        if not (context.get("runAsNonRoot") and context.get("runAsUser")):
            yield "a pod may run as root"


def floating_image(one: dict[str, Any]) -> Iterator[str]:
    for container in containers(one):
        _, _, tag = container["image"].rpartition("/")[2].partition(":")
        if tag in ("", "latest"):
            yield f"image {container['image']} has no version"


def secret_in_the_open(one: dict[str, Any]) -> Iterator[str]:
    if one["kind"] == "Secret":
        yield "a secret in the repository"
    for container in containers(one):
        for variable in container.get("env", ()):
            secret = any(word in variable["name"] for word in ("PASSWORD", "SECRET", "TOKEN"))
            if secret and "value" in variable:
                yield f"{variable['name']} has its value in the manifest"


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec, however deep."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


RULES: tuple[Rule, ...] = (
    old_version, two_ways_to_delete, never_deleted, submitted_twice, fragile_submission,
    retried_from_the_start, suspended_with_autoscaler, open_to_anyone, exposed, work_on_the_head,
    head_on_spot, without_bounds, with_rights, as_root, floating_image, secret_in_the_open,
)  # fmt: skip
