"""CRDs become strict schemas. This is a small one of their make, and
``CASCADE_KUBERAY_CRDS`` brings theirs."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.crd_schema import VARIABLE, Schema, problems, read_crds, strict_schemas
from tests.deploy.manifests import OVERLAYS, rendered

FOLDER = os.environ.get(VARIABLE)
CRD = yaml.safe_load("""
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ships.example.com}
spec:
  group: example.com
  names: {kind: Ship, plural: ships}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          description: A ship.
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              required: [name, crew, berth]
              properties:
                name: {type: string, minLength: 1}
                crew: {type: integer, format: int32, default: 1, minimum: 0}
                berth:
                  anyOf: [{type: integer}, {type: string}]
                  pattern: "^[0-9]+%?$"
                  x-kubernetes-int-or-string: true
                flag: {type: string, nullable: true, enum: [red, green]}
                depth: {type: number, minimum: 0, exclusiveMinimum: true}
                labels: {type: object, additionalProperties: {type: string}}
                ports:
                  type: array
                  x-kubernetes-list-type: set
                  items: {type: string}
                cargo:
                  type: object
                  x-kubernetes-preserve-unknown-fields: true
                  properties: {tons: {type: integer}}
                boats:
                  type: array
                  items:
                    type: object
                    required: [oars]
                    properties: {oars: {type: integer}}
                pod:
                  type: object
                  x-kubernetes-embedded-resource: true
                  properties: {spec: {type: object}}
                engine:
                  type: object
                  properties: {coal: {type: integer}, oil: {type: integer}}
                  oneOf: [{required: [coal]}, {required: [oil]}]
                  x-kubernetes-validations: [{rule: "true"}]
    - name: v1alpha1
      served: false
      storage: false
      schema: {openAPIV3Schema: {type: object}}
""")
SPEC: dict[str, Any] = {
    "name": "Fram",
    "berth": "5%",
    "flag": None,
    "depth": 4.5,
    "labels": {"any": "text"},
    "ports": ["Oslo", "Tromsø"],
    "cargo": {"tons": 3, "dogs": {"sledges": 4}},
    "boats": [{"oars": 4}],
    "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cook"}, "spec": {}},
    "engine": {"oil": 2},
}


def ship(**changed: Any) -> dict[str, Any]:
    spec = copy.deepcopy(SPEC) | changed
    metadata = {"name": "fram", "labels": {"a": "b"}}
    return {"apiVersion": "example.com/v1", "kind": "Ship", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def schema() -> Schema:
    ((named, schema),) = strict_schemas(CRD)  # the version that is not served has none
    assert named == ("example.com/v1", "Ship")
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def test_what_the_server_takes_passes(schema: Schema) -> None:
    assert problems(ship(), schema) == []
    assert problems(ship(berth=5, flag="red", crew=0), schema) == []  # crew has a default, too


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"nmae": "Fram"}, "$.spec: Additional properties are not allowed ('nmae' was unexpected)"),
        ({"boats": [{"oars": 4, "sail": 1}]}, "$.spec.boats[0]: Additional properties"),
        ({"boats": [{}]}, "$.spec.boats[0]: 'oars' is a required property"),
        ({"engine": {"coal": 1, "steam": 2}}, "$.spec.engine: Additional properties"),
        ({"engine": {"coal": 1, "oil": 2}}, "$.spec.engine: "),
        ({"pod": {"kind": "Pod", "sepc": {}}}, "$.spec.pod: Additional properties"),
        ({"cargo": {"tons": "3"}}, "$.spec.cargo.tons: '3' is not of type 'integer'"),
        ({"berth": "five"}, "$.spec.berth: 'five' does not match"),
        ({"berth": 5.5}, "$.spec.berth: 5.5 is not"),
        ({"berth": None}, "$.spec.berth: None is not"),
        ({"flag": "blue"}, "$.spec.flag: 'blue' is not valid"),
        ({"name": None}, "$.spec.name: None is not of type 'string'"),
        ({"depth": 0}, "$.spec.depth: 0 is less than or equal to the minimum of 0"),
        ({"crew": 2**31}, "$.spec.crew: 2147483648 is greater than the maximum"),
        ({"labels": {"any": 3}}, "$.spec.labels.any: 3 is not of type 'string'"),
        ({"ports": ["Oslo", "Oslo"]}, "$.spec.ports: ['Oslo', 'Oslo'] has non-unique elements"),
    ],
)
def test_what_it_refuses_or_would_drop_is_named(
    schema: Schema, changed: dict[str, Any], problem: str
) -> None:
    told = problems(ship(**changed), schema)
    assert any(line.startswith(problem) for line in told), told


def test_a_field_beside_the_spec_and_a_missing_name_are_noticed(schema: Schema) -> None:
    assert "'sepc' was unexpected" in problems({**ship(), "sepc": {}}, schema)[0]
    nameless = ship()
    del nameless["spec"]["name"], nameless["metadata"]
    assert problems(nameless, schema) == [
        "$.spec: 'name' is a required property",
        "$: 'metadata' is a required property",
    ]


def test_a_folder_is_read_as_operators_publish_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("kind: CustomResourceDefinition")
    with pytest.raises(ValueError, match=f"{VARIABLE}: {tmp_path} holds no CustomResource"):
        read_crds(tmp_path)
    other = copy.deepcopy(CRD)
    other["spec"]["names"]["kind"] = "Boat"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ships"}}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all([namespace, None, CRD]))
    listed = {"apiVersion": "v1", "kind": "List", "items": [other]}
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "list.json").write_text(json.dumps(listed))
    assert read_crds(tmp_path).keys() == {("example.com/v1", "Ship"), ("example.com/v1", "Boat")}


def test_a_keyword_that_is_not_understood_is_no_permission(tmp_path: Path) -> None:
    strange = copy.deepcopy(CRD)
    root = strange["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    root["properties"]["spec"]["properties"]["name"]["x-kubernetes-new"] = True
    (tmp_path / "strange.yaml").write_text(yaml.safe_dump(strange))
    with pytest.raises(ValueError, match=r"strange.yaml: .*Ship.spec.name: unknown .*x-kuber"):
        read_crds(tmp_path)


@pytest.mark.skipif(
    FOLDER is None,
    reason="the operators' CRDs are no part of this project: put KubeRay's ray.io_rayservices.yaml "
    f"into a folder, others too if you like, and run {VARIABLE}=FOLDER pytest tests/deploy",
)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_keeps_the_operators_own_schema(overlay: str) -> None:
    crds = read_crds(Path(str(FOLDER)))
    assert ("ray.io/v1", "RayService") in crds, f"{FOLDER} lacks the CRD of RayService"
    for resource in rendered(overlay):
        schema = crds.get((resource["apiVersion"], resource["kind"]))
        if schema is not None:
            assert problems(resource, schema) == [], resource["metadata"]["name"]
