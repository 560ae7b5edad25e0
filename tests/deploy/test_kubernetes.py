"""The Kustomize base and overlays: each object against its schema, and what must fit together."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cloud import probe
from cloud.config import ClusterConfig, parse_config
from tests.deploy.manifests import (
    OVERLAYS,
    cluster_yaml,
    of_kind,
    pod_templates,
    ray_groups,
    ray_service,
    rendered,
)
from tests.deploy.ray_schema import POD_MONITOR, RAY_SERVICE

# The oldest and the newest whose schemas are at hand; KubeRay 1.7 needs no more than the first.
VERSIONS = ("1.29", "1.36")
OURS = {"RayService": RAY_SERVICE, "PodMonitor": POD_MONITOR}


def check(resource: dict[str, Any]) -> None:
    """Kubernetes' own schemas, unknown fields refused."""
    for version in VERSIONS:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_keeps_its_schema(overlay: str) -> None:
    assert len(rendered(overlay)) >= 10
    for resource in rendered(overlay):
        if resource["kind"] in OURS:
            jsonschema.validate(resource, OURS[resource["kind"]])
        else:
            check(resource)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_ray_service_takes_from_kubernetes_keeps_its_schema(overlay: str) -> None:
    check_ray_service(ray_service(overlay))


def check_ray_service(service: dict[str, Any]) -> None:
    """Its own schema, and Kubernetes' for what it takes from there."""
    jsonschema.validate(service, RAY_SERVICE)
    for resource in embedded(service):
        check(resource)


def embedded(service: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a RayService that are Kubernetes' own, as objects of their own."""
    spec = service["spec"]
    cluster = spec["rayClusterConfig"]
    yield {"apiVersion": "v1", "kind": "Service", **spec["serveService"]}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
    scaler = {
        key: value
        for key, value in cluster["autoscalerOptions"].items()
        if key in ("resources", "securityContext", "env", "envFrom", "volumeMounts")
    }
    password = cluster.get("gcsFaultToleranceOptions", {}).get("redisPassword", {})
    container = {"name": "autoscaler", "env": [{"name": "PASSWORD", **password}], **scaler}
    yield {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [container]}}


def _typo_in_the_cluster(service: dict[str, Any]) -> None:
    service["spec"]["rayClusterConfig"]["gcsFaultTolerance"] = {}


def _typo_in_a_group(service: dict[str, Any]) -> None:
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 3


def _typo_in_a_pod(service: dict[str, Any]) -> None:
    group = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    group["template"]["spec"]["containers"][0]["livenesProbe"] = {}


def _number_for_text(service: dict[str, Any]) -> None:
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


@pytest.mark.parametrize(
    "spoil", [_typo_in_the_cluster, _typo_in_a_group, _typo_in_a_pod, _number_for_text]
)
def test_a_mistake_in_the_ray_service_does_not_pass(
    spoil: Callable[[dict[str, Any]], None],
) -> None:
    service = copy.deepcopy(ray_service("base"))
    spoil(service)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_ray_service(service)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_is_root_or_may_become_it(overlay: str) -> None:
    for name, template in pod_templates(overlay):
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"], name
        assert pod["runAsUser"] > 0, name
        for container in template["spec"]["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"]["drop"] == ["ALL"], name
            assert own["seccompProfile"]["type"] == "RuntimeDefault", name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_asks_for_what_it_needs_and_is_probed(overlay: str) -> None:
    for name, template in pod_templates(overlay):
        for container in template["spec"]["containers"]:
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][kind]), name
            assert {"readinessProbe", "livenessProbe"} <= set(container), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_selects_pods_selects_some(overlay: str) -> None:
    pods = [template["metadata"]["labels"] for _, template in pod_templates(overlay)]
    wanted = [
        *(each["spec"]["selector"] for each in of_kind(overlay, "Service")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in of_kind(overlay, "NetworkPolicy")),
        *(
            each["spec"]["selector"]["matchLabels"]
            for kind in ("PodDisruptionBudget", "PodMonitor", "Deployment")
            for each in of_kind(overlay, kind)
        ),
    ]
    for labels in wanted:
        assert any(labels.items() <= pod.items() for pod in pods), labels


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_named_ports_are_ports_of_the_pods(overlay: str) -> None:
    templates = list(pod_templates(overlay))
    for service in of_kind(overlay, "Service"):
        names = set()
        for _, template in templates:
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items():
                names |= set(ports(template))
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for monitor in of_kind(overlay, "PodMonitor"):
        wanted = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        found = {
            name: wanted & set(ports(group["template"]))
            for name, group in ray_groups(overlay).items()
        }
        # Ray's of each pod; the gateway's where it runs.
        assert all("metrics" in names for names in found.values()), found
        assert set().union(*found.values()) == wanted


def ports(template: dict[str, Any]) -> dict[str, int]:
    """Ports of a pod by their names."""
    return {
        port["name"]: port["containerPort"]
        for container in template["spec"]["containers"]
        for port in container["ports"]
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_devices_reach_the_port_that_the_gateway_listens_on(overlay: str) -> None:
    port = config(overlay).gateway.port
    assert config(overlay).gateway.host == "0.0.0.0"
    assert ports(ray_groups(overlay)["gateway"]["template"])["serve"] == port
    (service,) = (
        each
        for each in of_kind(overlay, "Service")
        if each["metadata"]["name"] == "cascade-gateway"
    )
    assert [each["port"] for each in service["spec"]["ports"]] == [port]
    # The operator keeps the port of this name alone.
    serve = ray_service(overlay)["spec"]["serveService"]["spec"]["ports"]
    assert [(each["name"], each["port"]) for each in serve] == [("serve", port)]
    opened = [
        each["spec"]["ingress"]
        for each in of_kind(overlay, "NetworkPolicy")
        if each["metadata"]["name"] == "cascade-gateway"
    ]
    assert opened == [[{"ports": [{"port": port}]}]]


def config(overlay: str) -> ClusterConfig:
    """The cluster of an overlay."""
    return parse_config(cluster_yaml(overlay), overlay)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_files_that_the_cluster_names_are_mounted(overlay: str) -> None:
    gateway = config(overlay).gateway
    application = yaml.safe_load(ray_service(overlay)["spec"]["serveConfigV2"])["applications"][0]
    everywhere = [
        application["args"]["config_file"],
        gateway.tls.certificate,
        gateway.tls.key,
        gateway.tls.ca,
        gateway.api_keys_file,
    ]
    for name, group in ray_groups(overlay).items():
        for path in everywhere:
            assert mounted(group["template"], str(path)), f"{path} on {name}"
    for tier in config(overlay).tiers:
        if tier.provider is not None:
            assert mounted(ray_groups(overlay)["tier"]["template"], str(tier.provider.api_key_file))


def mounted(template: dict[str, Any], path: str) -> bool:
    """Whether a file lies in a volume that its pod declares."""
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    (container,) = template["spec"]["containers"]
    return any(
        mount["name"] in volumes and PurePosixPath(path).is_relative_to(mount["mountPath"])
        for mount in container["volumeMounts"]
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_that_pods_name_are_there_or_are_the_operators_secrets(overlay: str) -> None:
    there = {(each["kind"], each["metadata"]["name"]) for each in rendered(overlay)}
    secrets = {
        "cascade-tls",
        "cascade-api-keys",
        "cascade-provider-keys",
    }
    assert not of_kind(overlay, "Secret")
    for name, template in pod_templates(overlay):
        account = template["spec"].get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in there, name
        for volume in template["spec"]["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there, name
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in there, name
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_gateway_has_a_node_and_nothing_else_is_placed_there(overlay: str) -> None:
    groups = ray_groups(overlay)
    gateways = groups["gateway"]
    (deployment,) = yaml.safe_load(ray_service(overlay)["spec"]["serveConfigV2"])["applications"][
        0
    ]["deployments"]
    assert gateways["minReplicas"] == gateways["replicas"] == deployment["num_replicas"]
    assert deployment["max_replicas_per_node"] == 1
    # What the gateways share out among themselves goes by the configuration.
    gateway = config(overlay).gateway
    assert gateway.replicas == deployment["num_replicas"]
    assert gateway.nodes == gateway.replicas
    # The shell of the start command takes one layer of quotes off.
    (resources,) = shlex.split(gateways["rayStartParams"]["resources"])
    assert json.loads(resources) == {"gateway": 1}
    # The next version starts while this one drains.
    assert 2 * deployment["ray_actor_options"]["resources"]["gateway"] <= 1
    assert groups["head"]["rayStartParams"]["num-cpus"] == "0"
    assert gateways["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_largest_tiers_fit_into_the_nodes_for_them(overlay: str) -> None:
    group = ray_groups(overlay)["tier"]
    (container,) = group["template"]["spec"]["containers"]
    cpus = int(container["resources"]["limits"]["cpu"])
    tiers = config(overlay).tiers
    assert all(tier.threads <= cpus for tier in tiers)
    assert config(overlay).threads <= cpus * group["maxReplicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_outlive_the_drain(overlay: str) -> None:
    for name in ("gateway", "tier"):
        spec = ray_groups(overlay)[name]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] > config(overlay).gateway.drain_s + 5


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_gateways_probe_is_one_that_runs(
    overlay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (container,) = ray_groups(overlay)["gateway"]["template"]["spec"]["containers"]
    python, option, module, *words = container["readinessProbe"]["exec"]["command"]
    assert (python, option, module) == ("python", "-m", probe.__name__)
    # Its file is not on this machine.
    assert probe.main(words) == 1
    assert "/etc/cascade/cluster/cluster.yaml" in capsys.readouterr().err


def test_all_but_the_one_for_a_laptop_survive_the_loss_of_the_head() -> None:
    kept = {name: ray_service(name)["spec"]["rayClusterConfig"] for name in OVERLAYS}
    assert [name for name in OVERLAYS if "gcsFaultToleranceOptions" in kept[name]] == [
        "base",
        "production",
        "gpu",
    ]
    for cluster in kept.values():
        # The old and the new cluster of an upgrade must not share one.
        assert "externalStorageNamespace" not in cluster.get("gcsFaultToleranceOptions", {})
        assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_placeholders_that_an_overlay_replaces(overlay: str) -> None:
    for name, template in pod_templates(overlay):
        (container,) = template["spec"]["containers"]
        image, _, tag = container["image"].partition(":")
        assert tag not in ("", "latest"), name
        assert image.startswith("ghcr.io/OWNER/cascade-" if overlay != "dev" else "cascade-"), name
