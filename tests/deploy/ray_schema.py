"""JSON Schema of the objects that Kubernetes learns from operators: strict, unlike the operators.

Written from the API references of KubeRay v1.7.0 (``ray.io/v1``) and the Prometheus operator
(``monitoring.coreos.com/v1``): every field of the reference is named, and no other is allowed. What
both take over from Kubernetes (pod templates, Services, resources) is ``true`` here and checked
against Kubernetes' own schema by ``test_kubernetes``. The operators' own CRDs,
where they are at hand, are for ``test_crd_schema``.
"""

from __future__ import annotations

from typing import Any, Final

ANY: Final = True
_TEXT: Final = {"type": "string"}
_FLAG: Final = {"type": "boolean"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_TEXTS: Final = {"type": "object", "additionalProperties": _TEXT}


def _object(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _one_of(*words: str) -> dict[str, Any]:
    return {"enum": list(words)}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


_MANAGER: Final = _one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_CREDENTIAL: Final = _object(value=_TEXT, valueFrom=ANY)
_GCS: Final = _object(
    backend=_one_of("redis", "rocksdb"),
    redisUsername=_CREDENTIAL,
    redisPassword=_CREDENTIAL,
    externalStorageNamespace=_TEXT,
    redisAddress=_TEXT,
    storage=ANY,
)
_AUTOSCALER: Final = _object(
    resources=ANY,
    image=_TEXT,
    imagePullPolicy=_one_of("Always", "IfNotPresent", "Never"),
    securityContext=ANY,
    idleTimeoutSeconds=_COUNT,
    upscalingMode=_one_of("Default", "Aggressive", "Conservative"),
    version=_one_of("v1", "v2"),
    env=ANY,
    envFrom=ANY,
    volumeMounts=ANY,
    command=_list(_TEXT),
    args=_list(_TEXT),
)
_HEAD: Final = _object(
    ("template",),
    template=ANY,
    headService=ANY,
    enableIngress=_FLAG,
    ingressOptions=ANY,
    resources=_TEXTS,
    labels=_TEXTS,
    rayStartParams=_TEXTS,
    serviceType=_one_of("ClusterIP", "NodePort", "LoadBalancer"),
)
_WORKERS: Final = _object(
    ("groupName", "template"),
    suspend=_FLAG,
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    priority=_COUNT,
    resources=_TEXTS,
    labels=_TEXTS,
    rayStartParams=_TEXTS,
    template=ANY,
    scaleStrategy=_object(workersToDelete=_list(_TEXT)),
    numOfHosts=_COUNT,
)
_CLUSTER: Final = _object(
    ("headGroupSpec",),
    upgradeStrategy=_object(type=_one_of("Recreate", "None")),
    authOptions=_object(
        mode=_one_of("disabled", "token"), enableK8sTokenAuth=_FLAG, secretName=_TEXT
    ),
    suspend=_FLAG,
    managedBy=_MANAGER,
    autoscalerOptions=_AUTOSCALER,
    headServiceAnnotations=_TEXTS,
    enableInTreeAutoscaling=_FLAG,
    gcsFaultToleranceOptions=_GCS,
    historyServerOptions=ANY,
    networkPolicy=ANY,
    tlsOptions=_object(enabled=_FLAG),
    headGroupSpec=_HEAD,
    rayVersion=_TEXT,
    workerGroupSpecs=_list(_WORKERS),
)

RAY_SERVICE: Final = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=ANY,
    spec=_object(
        ("rayClusterConfig",),
        rayClusterDeletionDelaySeconds=_COUNT,
        serviceUnhealthySecondThreshold=_COUNT,
        deploymentUnhealthySecondThreshold=_COUNT,
        serveService=ANY,
        upgradeStrategy=_object(
            type=_one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None"),
            clusterUpgradeOptions=ANY,
        ),
        managedBy=_MANAGER,
        serveConfigV2=_TEXT,
        rayClusterConfig=_CLUSTER,
        excludeHeadPodFromServeSvc=_FLAG,
        suspend=_FLAG,
    ),
)

POD_MONITOR: Final = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "PodMonitor"},
    metadata=ANY,
    spec=_object(
        ("selector", "podMetricsEndpoints"),
        jobLabel=_TEXT,
        podTargetLabels=_list(_TEXT),
        namespaceSelector=_object(any=_FLAG, matchNames=_list(_TEXT)),
        selector=_object(matchLabels=_TEXTS, matchExpressions=ANY),
        sampleLimit=_COUNT,
        podMetricsEndpoints=_list(
            _object(
                port=_TEXT,
                portNumber=_COUNT,
                path=_TEXT,
                scheme=_one_of("http", "https"),
                interval={"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                scrapeTimeout={"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                honorLabels=_FLAG,
                relabelings=ANY,
                metricRelabelings=ANY,
            )
        ),
    ),
)
