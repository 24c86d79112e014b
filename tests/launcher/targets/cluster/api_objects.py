"""What the tests' API server keeps: objects, their history, merge patches and selectors."""

import threading
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str, str]


@dataclass
class Store:
    """Every object by group, plural, namespace and name, and what changed since the compaction."""

    objects: dict[Key, Object] = field(default_factory=dict)
    history: list[tuple[int, str, Key, Object]] = field(default_factory=list)
    version: int = 100
    oldest: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def write(self, key: Key, value: Object, event: str) -> Object:
        with self.changed:
            self.version += 1
            value = {
                **value,
                "metadata": {**value["metadata"], "resourceVersion": str(self.version)},
            }
            if event == "DELETED":
                self.objects.pop(key, None)
            else:
                self.objects[key] = value
            self.history.append((self.version, event, key, value))
            self.changed.notify_all()
            return value


def merged(value: Object, change: Object) -> Object:
    """JSON merge patch (RFC 7396)."""
    result = dict(value)
    for name, new in change.items():
        if new is None:
            result.pop(name, None)
        elif isinstance(new, dict):
            below = result.get(name)
            result[name] = merged(below if isinstance(below, dict) else {}, new)
        else:
            result[name] = new
    return result


def selected(value: Object, query: dict[str, str]) -> bool:
    labels = value["metadata"].get("labels", {})
    for entry in filter(None, query.get("labelSelector", "").split(",")):
        name, _, wanted = entry.partition("=")
        if labels.get(name) != wanted:
            return False
    for entry in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, wanted = entry.partition("=")
        found: Any = value
        for step in path.split("."):
            found = found.get(step) if isinstance(found, dict) else None
        if found != wanted:
            return False
    return True
