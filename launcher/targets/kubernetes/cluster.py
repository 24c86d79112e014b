"""The API server behind the official client: objects as plain data, refusals as LauncherErrors.

Every call has a timeout, and is retried when the server is busy (429) or briefly unavailable.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from launcher.errors import LauncherError, MissingToolError, UsageError
from launcher.targets.kubernetes.api_errors import GoneError, explain, unreachable
from launcher.targets.kubernetes.kinds import ACCESS_REVIEW, POD, JobKind, Resource
from launcher.targets.kubernetes.manifests import Manifest

try:
    import urllib3
    from kubernetes import client, config, dynamic, watch
    from kubernetes.config.config_exception import ConfigException
except ImportError:
    raise MissingToolError(
        "the Kubernetes client is not installed; pip install 'syncbn[kubernetes]'"
    ) from None

_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 30.0
_QUIET_SECONDS = 300.0  # without a line of the log before it is requested again
_TRIES = 5
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Cluster:
    """One namespace of one cluster. Its methods raise LauncherError and its subclasses."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.namespace = namespace
        self.host = str(api.configuration.host)
        # The kinds are known: discovery, one request per API group, is not needed.
        self._client = dynamic.DynamicClient(api, discoverer=_NothingToDiscover)

    @classmethod
    def connect(cls, context: str | None, namespace: str | None) -> Self:
        """By kubeconfig, or as the service account of this pod. Raises UsageError without both."""
        settings = client.Configuration()
        # POST is retried too: if the first request did succeed, the second returns a conflict.
        settings.retries = urllib3.Retry(
            total=_TRIES,
            backoff_factor=0.2,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
        )
        file = os.environ.get("KUBECONFIG")  # the client itself reads it only once, when imported
        try:
            config.load_kube_config(file, context=context, client_configuration=settings)
            default = _context_namespace(file, context)
        except (ConfigException, OSError) as error:
            if context is not None or not _NAMESPACE_FILE.exists():
                raise UsageError(
                    f"no cluster: {error}; set KUBECONFIG, or name a context with --context"
                ) from None
            config.load_incluster_config(client_configuration=settings)
            default = _NAMESPACE_FILE.read_text().strip()
        return cls(client.ApiClient(settings), namespace or default)

    def check(self, kind: JobKind) -> None:
        """Raises LauncherError unless the cluster answers, has the kind, and lets us create it."""
        self.list(kind.resource, limit=1)
        wanted = {"namespace": self.namespace, "verb": "create", "group": kind.resource.group}
        wanted["resource"] = kind.resource.plural
        answer = self.create(ACCESS_REVIEW, {"spec": {"resourceAttributes": wanted}})
        if not answer["status"]["allowed"]:
            raise UsageError(
                f"no permission to create {kind.resource.plural} in namespace "
                f"{self.namespace!r}; it takes the rights in k8s/base/rbac.yaml"
            )

    def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """The object as created. Raises ConflictError if one of that name exists."""
        named = {"apiVersion": resource.api_version, "kind": resource.kind, **manifest}
        return self._call(resource, "create", body=named)

    def get(self, resource: Resource, name: str) -> Manifest | None:
        """The object, or None if there is none of that name."""
        found = self.list(resource, field_selector=f"metadata.name={name}")
        return found[0][0] if found[0] else None

    def list(
        self,
        resource: Resource,
        labels: str = "",
        field_selector: str = "",
        limit: int | None = None,
    ) -> tuple[list[Manifest], str]:
        """The objects, and the version of the whole list, from which to start a watch."""
        content = self._call(
            resource, "get", label_selector=labels, field_selector=field_selector, limit=limit
        )
        # In lists the API server omits the kind from objects of its built-in kinds.
        items = [{"kind": resource.kind, **item} for item in content["items"]]
        return items, str(content["metadata"].get("resourceVersion", ""))

    def changes(
        self, resource: Resource, version: str, seconds: int, labels: str = "", fields: str = ""
    ) -> Iterator[Manifest]:
        """Objects as they change after `version`, for `seconds` or until the server disconnects.

        Raises GoneError when the server no longer has that version: list again.
        """
        with self._explained(resource):
            stream = watch.Watch(return_type="object").stream(
                self._resource(resource).get,
                namespace=self.namespace,
                label_selector=labels,
                field_selector=fields,
                resource_version=version,
                timeout_seconds=seconds,
                serialize=False,
                _request_timeout=(_CONNECT_SECONDS, seconds + _CONNECT_SECONDS),
            )
            try:
                for event in stream:
                    yield event["raw_object"]
            except (urllib3.exceptions.HTTPError, json.JSONDecodeError):
                return  # the connection was cut: the caller lists again

    def patch(self, resource: Resource, name: str, change: Manifest) -> None:
        """Merges the change into the object."""
        content_type = "application/merge-patch+json"
        self._call(resource, "patch", name=name, body=change, content_type=content_type)

    def delete(self, resource: Resource, name: str) -> bool:
        """Deletes the object and, in the background, what it owns; False if it does not exist."""
        try:
            self._call(resource, "delete", name=name, body={"propagationPolicy": "Background"})
        except GoneError:
            return False
        return True

    def kill_pods(self, labels: str) -> None:
        """Deletes pods without a grace period."""
        self._call(POD, "delete", label_selector=labels, grace_period_seconds=0)

    @contextmanager
    def log(self, pod: str, container: str, follow: bool, seconds: int | None) -> Iterator[Any]:
        """The log of a pod, of the last `seconds` or all of it, as a response to read lines from.

        Each line starts with its timestamp.
        """
        wanted: list[tuple[str, Any]] = [("container", container), ("timestamps", "true")]
        wanted += [("follow", "true")] if follow else []
        wanted += [] if seconds is None else [("sinceSeconds", seconds)]
        with self._explained(POD):
            response = self._client.request(
                "get",
                self._resource(POD).path(name=pod, namespace=self.namespace) + "/log",
                query_params=wanted,
                header_params={"Accept": "*/*"},
                serialize=False,
                _request_timeout=(_CONNECT_SECONDS, _QUIET_SECONDS if follow else _ANSWER_SECONDS),
            )
        try:
            yield response
        finally:
            response.close()
            response.release_conn()

    def _call(self, resource: Resource, method: str, **options: Any) -> Manifest:
        """The server's answer to a method of the dynamic client."""
        with self._explained(resource):
            response = getattr(self._resource(resource), method)(
                namespace=self.namespace if resource.namespaced else None,
                serialize=False,
                _request_timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS),
                **options,
            )
            content = json.loads(response.data)
        if not isinstance(content, dict):
            raise LauncherError(f"expected an object from the API server. Received: {content!r}")
        return content

    def _resource(self, resource: Resource) -> Any:
        return dynamic.Resource(
            prefix="apis" if resource.group else "api",
            group=resource.group,
            api_version=resource.version,
            kind=resource.kind,
            name=resource.plural,
            namespaced=resource.namespaced,
            client=self._client,
        )

    @contextmanager
    def _explained(self, resource: Resource) -> Iterator[None]:
        try:
            yield
        except client.ApiException as error:
            raise explain(error, resource, self.namespace) from None
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(self.host, error) from None


class _NothingToDiscover:
    """Replaces the discovery of the dynamic client."""

    def __init__(self, client: Any, cache_file: str | None) -> None:
        """Has the signature that the dynamic client calls."""


def _context_namespace(file: str | None, context: str | None) -> str:
    contexts, active = config.list_kube_config_contexts(file)
    chosen = next((one for one in contexts if one["name"] == context), active)
    return str(chosen["context"].get("namespace", "default"))
