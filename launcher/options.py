"""Command line options generated from the fields of a pydantic model.

A field with a description is an option of the field's name; `option` overrides its settings. A
field that is itself a model contributes the options of its own fields.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """The settings of an option that its field does not define.

    Attributes:
        names: Instead of the field's own name.
        panel: The panel of the help that lists it.
        shown: The default in the help, instead of the field's.
        parse: Converts text, or a list of texts if it may be given more than once, to what the
            field takes. Raises UsageError.
        repeated: Whether it may be given more than once.
        metavar: The name of the value in the help.
        variable: An environment variable that is read if the option is not given.
    """

    names: tuple[str, ...] = ()
    panel: str | None = None
    shown: str | None = None
    parse: Callable[[Any], Any] | None = None
    repeated: bool = False
    metavar: str | None = None
    variable: str | None = None


def option(default: Any, text: str, panel: str | None, *names: str, **differences: Any) -> Any:
    """A field of a model that is also an option; `text` is its line in the help. See Option."""
    known = Option(names, panel, **differences)
    return Field(default, description=text, json_schema_extra={_KEY: known})  # type: ignore[dict-item]


def parameters(model: type[BaseModel]) -> list[inspect.Parameter]:
    """The options of a model, for Typer; each is None where it is not given."""
    return [_parameter(path, field, known) for path, field, known in _options(model)]


def given(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were given, as nested tables, from the values of the parameters."""
    fields: dict[str, Any] = {}
    for path, field, known in _options(model):
        value = values.get(_key(path))
        if value is None or value == []:
            continue
        table = fields
        for name in path[:-1]:
            table = table.setdefault(name, {})
        table[path[-1]] = known.parse(value) if known.parse else _converted(value, field)
    return fields


def with_parameters(
    function: Callable[..., Any], own: Sequence[inspect.Parameter], doc: str | None
) -> Callable[..., Any]:
    """The function, which takes any arguments, with a signature that Typer can read."""
    function.__doc__ = doc
    keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    function.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    function.__annotations__ = {one.name: one.annotation for one in own}
    return function


def _options(
    model: type[BaseModel], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo, Option]]:
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from _options(inner, (*above, name))
        elif field.description is not None:
            extra = field.json_schema_extra
            known = extra.get(_KEY) if isinstance(extra, dict) else None
            yield (*above, name), field, known if isinstance(known, Option) else Option()


def _parameter(path: tuple[str, ...], field: FieldInfo, known: Option) -> inspect.Parameter:
    names = list(known.names) or ["--" + path[-1].replace("_", "-")]
    switch = bool in _types(field.annotation)
    shown = known.shown or _default(field, names[-1].removeprefix("--"))
    settings: dict[str, Any] = {
        # An unescaped [ would start Rich markup.
        "help": (field.description or "") + (f" \\[default: {shown}]" if shown else ""),
        "rich_help_panel": known.panel,
        "envvar": known.variable,
        "show_default": False,
        "show_envvar": False,
    }
    if switch:
        names[-1] = f"{names[-1]}/--no-{names[-1][2:]}"
        annotation: Any = bool | None
    else:
        settings["metavar"] = known.metavar or _metavar(field.annotation)
        # Values stay text: the model parses and checks them like those of a file.
        annotation = list[str] | None if known.repeated else str | None
    return inspect.Parameter(
        _key(path),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, typer.Option(*names, **settings)],
    )


def _key(path: tuple[str, ...]) -> str:
    return "__".join(path)


def _default(field: FieldInfo, flag: str) -> str:
    value = None if field.is_required() else field.default
    if isinstance(value, bool):
        return flag if value else f"no-{flag}"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value in (None, (), {}) else str(value)


def _converted(value: Any, field: FieldInfo) -> Any:
    """Text of a number as a number, for models that do not accept text."""
    for kind in (int, float):
        if isinstance(value, str) and kind in _types(field.annotation):
            try:
                return kind(value)
            except ValueError:
                return value  # the model reports what is wrong with it
    return value


def _metavar(annotation: Any) -> str:
    kinds = _types(annotation)
    return next((kind.__name__.lower() for kind in (int, float, Path) if kind in kinds), "name")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    models = [one for one in _types(annotation) if issubclass(one, BaseModel)]
    return models[0] if models and not _is_collection(annotation) else None


def _is_collection(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in {tuple, list, dict}


def _types(annotation: Any) -> set[type]:
    """The types that the value of a field may have, without those inside lists and tables."""
    if _is_collection(annotation):
        return {annotation.__origin__}
    if isinstance(annotation, type):
        return {annotation}
    return {kind for one in get_args(annotation) for kind in _types(one)}
