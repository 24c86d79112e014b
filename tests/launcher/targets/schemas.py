"""Checks manifests as a cluster would: built-in kinds by the published API, others by their CRDs.

The CRDs are those of crds/, whose README.md says where they come from.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

CRDS = Path(__file__).with_name("crds")
API_VERSION = kubernetes_validate.latest_version()


def validate(manifest: dict[str, Any]) -> None:
    """Raises an exception of the validator that names the field."""
    if (schema := crd_schema(manifest["apiVersion"], manifest["kind"])) is not None:
        whole = copy.deepcopy(manifest)
        fill_defaults(whole, schema)
        jsonschema.validate(whole, strict(schema))
        for pod in pod_specs(whole):
            # A CRD has a part of the schema of pods, the API has all of it.
            validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod})
    else:
        kubernetes_validate.validate(manifest, API_VERSION, strict=True)


@cache
def crd_schema(api_version: str, kind: str) -> dict[str, Any] | None:
    """The schema of a custom kind, or None for a built-in one."""
    for path in CRDS.glob("*.json"):
        crd = json.loads(path.read_text())
        if (f"{crd['group']}/{crd['version']}", crd["kind"]) == (api_version, kind):
            return dict(crd["schema"])
    return None


def fill_defaults(value: Any, schema: dict[str, Any]) -> None:
    """Adds the defaults of the API server, in place."""
    if isinstance(value, dict):
        for name, below in schema.get("properties", {}).items():
            if name not in value and "default" in below:
                value[name] = copy.deepcopy(below["default"])
            if name in value:
                fill_defaults(value[name], below)
        more = schema.get("additionalProperties")
        if isinstance(more, dict):
            for one in value.values():
                fill_defaults(one, more)
    elif isinstance(value, list) and "items" in schema:
        for one in value:
            fill_defaults(one, schema["items"])


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without unknown fields; the API's own extensions become standard JSON Schema."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {name: value for name, value in schema.items() if not name.startswith("x-")}
    if "properties" in schema:
        result["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = strict(schema["items"])
    result.pop("format", None)
    return result


def pod_specs(value: Any) -> list[dict[str, Any]]:
    """Every pod specification inside a manifest."""
    if isinstance(value, list):
        return [spec for one in value for spec in pod_specs(one)]
    if not isinstance(value, dict):
        return []
    if "containers" in value:
        return [value]
    return [spec for one in value.values() for spec in pod_specs(one)]
