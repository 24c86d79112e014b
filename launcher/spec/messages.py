"""Messages about invalid fields of a job: what was expected, an example, what was received."""

import difflib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

_LONGEST_QUOTE = 80

# For fields whose default is not a useful example.
EXAMPLES: dict[str, object] = {
    "command": ["python", "train.py"],
    "ranks": 2,
    "hosts": [{"name": "node1", "slots": 4}],
    "environment": {"DATA": "/data"},
    "pass_environment": ["API_TOKEN"],
    "resources": {"threads": 1},
    "resources.cpus": 2,
    "resources.memory": "8GiB",
    "resources.gpus": 1,
    "resources.threads": 1,
    "restart": {"max_restarts": 3},
    "restart.exit_codes": [1, 137],
    "directory": "/work",
    "metrics": {"port": 9400},
    "metrics.port": 9400,
    "metrics.push": "pushgateway:9091",
    "target": "local",
    "container": {"slots": 2},
    "container.image": "syncbn:cpu",
    "kubernetes": {"kind": "job"},
    "kubernetes.namespace": "research",
    "kubernetes.context": "cluster",
    "kubernetes.cpu": "4",
    "kubernetes.memory": "8Gi",
    "kubernetes.node_selector": {"disk": "ssd"},
    "kubernetes.tolerations": [{"key": "gpu"}],
    "kubernetes.service_account": "trainer",
    "kubernetes.pull_secrets": ["registry"],
    "kubernetes.pull_policy": "IfNotPresent",
    "kubernetes.secrets": ["tracking"],
    "kubernetes.config_maps": ["settings"],
    "kubernetes.secret_environment": {"TOKEN": {"secret": "storage", "key": "token"}},
    "kubernetes.volumes": [{"claim": "data", "path": "/data"}],
    "kubernetes.priority_class": "training",
    "kubernetes.queue": "vision",
    "kubernetes.time_limit": 86400,
    "slurm": {"partition": "main"},
    "slurm.partition": "main",
    "slurm.account": "vision",
    "slurm.qos": "normal",
    "slurm.time": "12:00:00",
    "slurm.constraint": "a100&ib",
    "slurm.gpu_type": "h100",
    "slurm.dependency": "afterok:4711",
    "slurm.setup": ["module load cuda"],
    "slurm.options": ["--reservation=maintenance"],
    "slurm.container_image": "/images/syncbn.sif",
    "slurm.mounts": ["/data"],
    "kubernetes.managed_by": "kueue.x-k8s.io/multikueue",
}

# pydantic's type of the error, and what our message says was expected.
_EXPECTED = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "path_type": "the path of a directory",
    "string_pattern_mismatch": "text that matches {pattern}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
}


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for each wrong field."""
    return "\n".join(_describe(problem, model) for problem in error.errors())


def example(names: tuple[str, ...], model: type[BaseModel]) -> object:
    """A valid value of the field; None if the field is unknown."""
    known = EXAMPLES.get(".".join(names))
    return known if known is not None else _default(names, model)


def toml(value: object) -> str:
    """The value as TOML."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(name)} = {toml(one)}" for name, one in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool | int | float):
        return f"{value:g}" if isinstance(value, float) else json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def _describe(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    path = [str(part) for part in problem["loc"] if part != "[key]"]
    field, names = ".".join(path), _names(problem["loc"], model)
    kind, received = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{field}: no such field of a job{_nearest(path, model)}"
    words = problem["msg"].removeprefix("Value error, ")
    if kind in _EXPECTED:
        limits = {name: _plain(limit) for name, limit in problem.get("ctx", {}).items()}
        words = "expected " + _EXPECTED[kind].format(**limits)
    elif kind == "missing":
        words = "expected a value"
    if not words.startswith("expected ") or not field:
        return f"{field}: {words}" if field else words
    shown = _suggested(names, received) or example(names, model)
    if shown is not None:
        words += f", as in {'.'.join(names)} = {toml(shown)}"
    return f"{field}: {words}" + ("" if kind == "missing" else f". Received: {_quote(received)}")


def _suggested(names: tuple[str, ...], received: object) -> object:
    """The value that was probably meant, if it can be derived from the received one."""
    if names == ("command",) and isinstance(received, str) and received.isprintable():
        try:
            return shlex.split(received) or None
        except ValueError:
            return None
    if names == ("hosts",) and isinstance(received, str) and received.isidentifier():
        return [{"name": received, "slots": 1}]
    return None


def _names(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, ...]:
    """The path of the field, up to the first index of a list or key of a free-form table."""
    names: tuple[str, ...] = ()
    for part in location:
        above = _model_at(names, model)
        if above is None or part not in above.model_fields:
            break
        names += (str(part),)
    return names


def _model_at(names: tuple[str, ...], model: type[BaseModel]) -> type[BaseModel] | None:
    """The model at this path of field names."""
    found: type[BaseModel] | None = model
    for name in names:
        if found is None or name not in found.model_fields:
            return None
        found = next(_models(found.model_fields[name].annotation), None)
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def _default(names: tuple[str, ...], model: type[BaseModel]) -> object:
    above = _model_at(names[:-1], model)
    if above is None or names[-1] not in above.model_fields:
        return None
    field = above.model_fields[names[-1]]
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return None if isinstance(value, BaseModel) else value


def _nearest(path: Sequence[str], model: type[BaseModel]) -> str:
    """What may have been meant: a field of a similar name, or one of that name in a table."""
    *above, name = (part for part in path if not part.isdigit())
    table = _model_at(tuple(above), model) or model
    known = list(table.model_fields)
    near = difflib.get_close_matches(name, known, 1)
    if not near:
        tables = {one: _model_at((one,), model) for one in model.model_fields}
        near = [
            f"{one}.{name}" for one, inner in tables.items() if inner and name in inner.model_fields
        ]
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _plain(limit: object) -> object:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _key(name: str) -> str:
    plain = name.replace("_", "").replace("-", "")
    return name if plain.isascii() and plain.isalnum() else json.dumps(name)


def _quote(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + " …"
