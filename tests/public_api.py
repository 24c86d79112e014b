"""What users rely on, one line each: names and signatures, the commands and their options.

python -m tests.public_api    # after a change that is meant; write it into CHANGELOG.md too
"""

import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import syncbn
from launcher import heartbeat
from launcher.cli.app import VERBS, load
from launcher.train.config import TrainConfig
from syncbn import callbacks, errors, legacy, native

PINNED = Path(__file__).with_name("public_api.txt")


def describe() -> str:
    """The whole surface as text, in a stable order."""
    lines = [
        *_module("syncbn", syncbn, syncbn.__all__),
        *_module("syncbn.callbacks", callbacks, callbacks.__all__),
        *_module("syncbn.errors", errors, _classes(errors)),
        *_module("syncbn.legacy", legacy, legacy.__all__),
        *_module("syncbn.native", native, ["Status", "status"]),
        *_module("launcher.heartbeat", heartbeat, ["Beat", "Heartbeat", "read"]),
    ]
    lines += _verbs()
    for name, field in sorted(TrainConfig.model_fields.items()):
        lines.append(f"launcher.train --{name.replace('_', '-')} = {field.default!r}")
    return "\n".join(lines) + "\n"


def _classes(module: types.ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and name[0] != "_"
    ]


def _module(place: str, module: types.ModuleType, names: list[str]) -> Iterator[str]:
    for name in sorted(names):
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            continue
        if not inspect.isclass(value):
            yield f"{place}.{name}{_signature(value)}"
            continue
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        own = "__init__" in vars(value)
        yield f"class {place}.{name}({bases}){': ' + _signature(value.__init__) if own else ''}"
        for member, method in sorted(vars(value).items()):
            if not member.startswith(("_", "on_")):  # Keras calls the on_... of callbacks
                yield f"    {place}.{name}.{member}{_signature(method)}"


def _signature(value: Any) -> str:
    if isinstance(value, property):
        return ": property"
    function = inspect.unwrap(getattr(value, "__func__", value))
    if not callable(function):
        return f" = {value!r}"
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]
    return re.sub(r" object at 0x[0-9a-f]+", "", str(inspect.Signature(parameters)))


def _verbs() -> Iterator[str]:
    """The verbs, then every option once, with all verbs that take it."""
    verbs: dict[str, list[str]] = {}
    for verb in VERBS:
        yield f"launcher {verb}"
        for parameter in load(verb).params:
            names = [*parameter.opts, *parameter.secondary_opts]
            name = "/".join(names) if names[0].startswith("-") else f"[{parameter.name}]"
            verbs.setdefault(name, []).append(verb)
    for name, takers in sorted(verbs.items()):
        yield f"launcher {'|'.join(takers)} {name}"


if __name__ == "__main__":
    PINNED.write_text(describe())
    print(PINNED)
