"""A CustomResourceDefinition as a strict JSON Schema: it refuses what the API server would refuse,
and what the server would drop without a word, the fields that it does not know.

After Kubernetes' rules for structural schemas
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions).
Not looked at: rules in CEL (``x-kubernetes-validations``), formats of texts, keys of lists that are
maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema
import yaml

VARIABLE: Final = "CASCADE_KUBERAY_CRDS"
"""Names a folder of the operators' own CRDs, as they publish them."""

Schema = dict[str, Any]

_META: Final = ("apiVersion", "kind", "metadata")
_INT32: Final = {"minimum": -(2**31), "maximum": 2**31 - 1}
# As JSON Schema has them.
_SAME: Final = frozenset(
    (
        *("type", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "multipleOf"),
        *("minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "required"),
    )
)
_COMBINED: Final = frozenset(("allOf", "anyOf", "oneOf"))
_ELSEWHERE: Final = frozenset(
    (
        *("properties", "additionalProperties", "items", "not", "format", "nullable"),
        *("exclusiveMinimum", "exclusiveMaximum", "x-kubernetes-list-type"),
        *("x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"),
        "x-kubernetes-embedded-resource",
    )
)
_SILENT: Final = frozenset(
    (
        *("description", "title", "default", "example", "externalDocs"),
        *("x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-validations"),
    )
)


def read_crds(folder: Path) -> dict[tuple[str, str], Schema]:
    """Strict schemas of all CRDs in the YAML and JSON files of a folder, by apiVersion and kind.

    Raises:
        ValueError: the folder has none, or one that cannot be translated; it is named.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".yaml", ".yml", ".json"):
            continue
        for document in yaml.safe_load_all(path.read_text()):
            for crd in _definitions(document):
                try:
                    found.update(strict_schemas(crd))
                except (ValueError, KeyError) as problem:
                    raise ValueError(f"{path}: {problem}") from None
    if not found:
        raise ValueError(f"{VARIABLE}: {folder} holds no CustomResourceDefinition")
    return found


def strict_schemas(crd: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Schema]]:
    """The schema of each served version of a CRD, by apiVersion and kind."""
    spec = crd["spec"]
    for version in spec["versions"]:
        if not version.get("served", True):
            continue
        name = f"{spec['group']}/{version['name']}"
        root = version["schema"]["openAPIV3Schema"]
        schema = _strict(root, f"{name} {spec['names']['kind']}")
        # Every object has these; what is in them is Kubernetes' own business.
        schema["properties"] = schema.get("properties", {}) | dict.fromkeys(_META, True)
        schema["required"] = sorted({*schema.get("required", ()), *_META})
        yield (name, spec["names"]["kind"]), schema


def problems(resource: Mapping[str, Any], schema: Schema) -> list[str]:
    """What is wrong with an object, a line each: the place, and what is the matter there."""
    validator = jsonschema.Draft202012Validator(schema)
    return sorted(f"{each.json_path}: {each.message}" for each in validator.iter_errors(resource))


def _definitions(document: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(document, dict):
        return
    if document.get("kind") == "CustomResourceDefinition":
        yield document
    for item in document.get("items", ()) if document.get("kind") == "List" else ():
        yield from _definitions(item)


def _strict(node: Mapping[str, Any], where: str) -> Schema:
    schema = _values(node, where)
    kept = node.get("x-kubernetes-preserve-unknown-fields", False)
    fields = node.get("properties", {})
    if node.get("type") == "object" or fields:
        schema["properties"] = {
            name: _strict(each, f"{where}.{name}") for name, each in fields.items()
        }
        others = node.get("additionalProperties", kept)
        schema["additionalProperties"] = (
            _strict(others, f"{where}.*") if isinstance(others, dict) else others or kept
        )
        if node.get("x-kubernetes-embedded-resource"):
            schema["properties"] |= dict.fromkeys(_META, True)
    if "items" in node:
        schema["items"] = _strict(node["items"], f"{where}[]")
    if "required" in schema:
        # A default is filled in before anything is checked.
        schema["required"] = [
            name for name in schema["required"] if "default" not in fields.get(name, {})
        ]
    if node.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if node.get("nullable"):
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


def _values(node: Mapping[str, Any], where: str) -> Schema:
    """What restricts values. Parts of ``allOf`` and its like do nothing else: they name no fields
    that were not named."""
    unknown = node.keys() - _SAME - _ELSEWHERE - _SILENT - _COMBINED
    if unknown:
        raise ValueError(f"{where}: unknown to this translation: {', '.join(sorted(unknown))}")
    schema = {name: node[name] for name in node.keys() & _SAME}
    for name in node.keys() & _COMBINED:
        schema[name] = [_loose(part, where) for part in node[name]]
    if "not" in node:
        schema["not"] = _loose(node["not"], where)
    if node.get("format") == "int32":
        schema = _INT32 | schema
    if node.get("x-kubernetes-list-type") == "set":
        schema["uniqueItems"] = True
    for limit in ("Minimum", "Maximum"):  # a flag beside the limit, in OpenAPI 3.0
        if node.get(f"exclusive{limit}"):
            schema[f"exclusive{limit}"] = schema.pop(limit.lower())
    return schema


def _loose(node: Mapping[str, Any], where: str) -> Schema:
    schema = _values(node, where)
    if "properties" in node:
        schema["properties"] = {
            name: _loose(each, f"{where}.{name}") for name, each in node["properties"].items()
        }
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            schema[name] = _loose(node[name], where)
    return schema
