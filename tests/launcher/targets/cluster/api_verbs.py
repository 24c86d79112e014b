"""What the tests' API server does for each verb on the objects of a kind."""

import itertools
import json
import re
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.launcher.targets.cluster.api_objects import Object, merged, selected
from tests.launcher.targets.cluster.api_replies import Replies
from tests.processes import REPOSITORY

if TYPE_CHECKING:
    from tests.launcher.targets.cluster.api_server import ApiServer

TOKEN = "a-token-of-the-tests"
LAUNCHER_TOKEN = "a-token-of-the-launcher"  # with the rights in k8s/base/rbac.yaml

_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<part>status|log))?$"
)
_BUILT_IN = {"", "batch", "policy"}
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_NAMESPACES = re.compile(r"^/api/v1/namespaces(?:/[^/]+)?$")


def _rights() -> set[tuple[str, str, str]]:
    """Group, resource and verb of all that the Role in k8s/base/rbac.yaml allows."""
    manifests = yaml.safe_load_all((REPOSITORY / "k8s" / "base" / "rbac.yaml").read_text())
    rules = [rule for one in manifests if one["kind"] == "Role" for rule in one["rules"]]
    return {
        right
        for rule in rules
        for right in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }


RIGHTS = _rights()


def _right(method: str, place: re.Match[str], query: dict[str, str]) -> tuple[str, str, str]:
    """What the request needs, as the API server counts it."""
    resource = place["plural"] + (f"/{place['part']}" if place["part"] else "")
    watches = query.get("watch") in {"true", "True", "1"}
    verb = {"POST": "create", "PATCH": "patch"}.get(method, "")
    if method == "GET":
        verb = "get" if place["name"] else "watch" if watches else "list"
    elif method == "DELETE":
        verb = "delete" if place["name"] else "deletecollection"
    return place["group"] or "", resource, verb


class Verbs(Replies):
    api: "ApiServer"

    def serve(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.api.requests.append((method, self.path))
        try:
            self._answer(method, url.path, query, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, method: str, path: str, query: dict[str, str], body: Object) -> None:
        for fault in list(self.api.faults):
            if fault.method in {"", method} and fault.path in self.path:
                self.api.faults.remove(fault)
                self._fail(fault.status, fault.message, headers=fault.headers)
                return
        who = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if who not in {TOKEN, LAUNCHER_TOKEN}:
            self._fail(401, "Unauthorized")
        elif path == _REVIEW:
            asked = body["spec"]["resourceAttributes"]
            right = (asked["group"], asked["resource"], asked["verb"])
            allowed = self.api.forbidden != asked["verb"] and right in RIGHTS
            self._send(201, {**body, "status": {"allowed": allowed}})
        elif _NAMESPACES.match(path):
            self._send(200, {"kind": "Namespace", "metadata": {"name": "any"}})
        elif (place := _PATH.match(path)) is None or not self._knows(place):
            self._send_text(404, "404 page not found\n")
        elif who == LAUNCHER_TOKEN and (right := _right(method, place, query)) not in RIGHTS:
            self._fail(403, f"{place['plural']} is forbidden: the launcher may not {right[2]} it")
        else:
            self._on_object(method, place, query, body)

    def _knows(self, place: re.Match[str]) -> bool:
        return (place["group"] or "", place["plural"]) in self.api.kinds

    def _on_object(
        self, method: str, place: re.Match[str], query: dict[str, str], body: Object
    ) -> None:
        where = (place["group"] or "", place["plural"], place["namespace"])
        name, part = place["name"], place["part"]
        if method == "POST":
            self._create(where, body)
        elif method == "GET" and name is None and query.get("watch") in {"true", "True", "1"}:
            self._watch(where, query)
        elif method == "GET" and name is None:
            self._list(where, query)
        elif method == "DELETE" and name is None:
            for key, value in self._matching(where, query):
                self._delete(key, value)
            self._send(200, {"kind": "Status", "status": "Success"})
        elif (found := self.api.store.objects.get((*where, name))) is None:
            details = {"name": name, "kind": where[1]}
            self._fail(404, f'{where[1]} "{name}" not found', "NotFound", details=details)
        elif part == "log":
            self._log(name, query)
        elif method == "GET":
            self._send(200, found)
        elif method == "DELETE":
            self._delete((*where, name), found)
            self._send(200, {"kind": "Status", "status": "Success"})
        else:
            self._patch((*where, name), found, part, body)

    def _create(self, where: tuple[str, str, str], body: Object) -> None:
        name = body.get("metadata", {}).get("name")
        if not name or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
            self._fail(422, f'metadata.name: Invalid value: "{name}"', "Invalid")
            return
        if (*where, name) in self.api.store.objects:
            details = {"name": name, "kind": where[1]}
            message = f'{where[1]} "{name}" already exists'
            self._fail(409, message, "AlreadyExists", details=details)
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        own = {"uid": str(uuid.uuid4()), "namespace": where[2], "creationTimestamp": stamp}
        value = {**body, "metadata": {**body["metadata"], **own}}
        self._send(201, self.api.store.write((*where, name), value, "ADDED"))

    def _patch(
        self, key: tuple[str, str, str, str], found: Object, part: str | None, change: Object
    ) -> None:
        if self.headers.get("Content-Type") != "application/merge-patch+json":
            self._fail(415, f"expected a merge patch, not {self.headers.get('Content-Type')}")
            return
        if part == "status":
            change = {"status": change.get("status", {})}
        else:
            change = {name: value for name, value in change.items() if name != "status"}
        self._send(200, self.api.store.write(key, merged(found, change), "MODIFIED"))

    def _delete(self, key: tuple[str, str, str, str], value: Object) -> None:
        self.api.store.write(key, value, "DELETED")
        uid = value["metadata"]["uid"]
        for other, owned in list(self.api.store.objects.items()):
            owners = owned["metadata"].get("ownerReferences", [])
            if any(owner["uid"] == uid for owner in owners):
                self._delete(other, owned)

    def _list(self, where: tuple[str, str, str], query: dict[str, str]) -> None:
        with self.api.store.changed:
            items = [value for _, value in self._matching(where, query)]
            version = str(self.api.store.version)
        items = items[: int(query.get("limit", len(items)))]
        if where[0] in _BUILT_IN:
            # In lists the API server omits the kind from objects of its built-in kinds.
            untold = {"apiVersion", "kind"}
            items = [{k: v for k, v in item.items() if k not in untold} for item in items]
        self._send(200, {"kind": "List", "metadata": {"resourceVersion": version}, "items": items})

    def _watch(self, where: tuple[str, str, str], query: dict[str, str]) -> None:
        store, seen = self.api.store, int(query.get("resourceVersion") or 0)
        limit = time.monotonic() + int(query.get("timeoutSeconds") or 30)
        left = self.api.watch_events
        self._begin_chunks("application/json")
        if seen < store.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            self._chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            self._end_chunks()
            return
        while not self.api.closing and time.monotonic() < limit:
            with store.changed:
                news = [change for change in store.history if change[0] > seen]
                if not news:
                    store.changed.wait(0.1)
                    continue
            for version, event, key, value in news:
                seen = version
                if key[:3] != where or not selected(value, query):
                    continue
                if left == 0:
                    self._cut()
                    return
                left -= 1
                line = json.dumps({"type": event, "object": value})
                self._chunk(line.encode() + b"\n")
        self._end_chunks()

    def _log(self, pod: str, query: dict[str, str]) -> None:
        allowed = self.api.log_bytes.popleft() if self.api.log_bytes else 1 << 30
        since = time.time() - float(query["sinceSeconds"]) if "sinceSeconds" in query else 0.0
        follow = query.get("follow") in {"true", "True"}
        self._begin_chunks("text/plain")
        sent = 0
        while True:
            with self.api.store.changed:
                lines = self.api.logs.get(pod, [])
                news, sent = lines[sent:], len(lines)
                ended = self._phase_of(pod) in {"Succeeded", "Failed", None}
                if not news and follow and not ended and not self.api.closing:
                    self.api.store.changed.wait(0.1)
                    continue
            for stamp, text in news:
                if datetime.fromisoformat(stamp[:26] + "+00:00").timestamp() < since:
                    continue
                line = f"{stamp} {text}\n".encode()
                if len(line) > allowed:
                    self._chunk(line[:allowed]) if allowed else None
                    self._cut()
                    return
                allowed -= len(line)
                self._chunk(line)
            if not follow or ended or self.api.closing:
                self._end_chunks()
                return

    def _phase_of(self, pod: str) -> str | None:
        for (_, plural, _, name), value in self.api.store.objects.items():
            if (plural, name) == ("pods", pod):
                return str(value.get("status", {}).get("phase", "Pending"))
        return None

    def _matching(
        self, where: tuple[str, str, str], query: dict[str, str]
    ) -> list[tuple[tuple[str, str, str, str], Object]]:
        objects = self.api.store.objects.items()
        return [one for one in objects if one[0][:3] == where and selected(one[1], query)]
