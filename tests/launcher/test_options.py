"""Options that are made from the fields of a model."""

from collections import Counter
from typing import Any

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from launcher import options
from launcher.errors import SpecError
from launcher.options import option
from launcher.spec import JobSpec, build_spec
from launcher.train.config import TrainConfig


class Inner(BaseModel):
    size: int | None = option(None, "How large.", "Panel", shown="any")
    names: tuple[str, ...] = option((), "Some.", None, "--name", repeated=True)


class Model(BaseModel):
    rate: float = Field(0.5, description="Of change.")
    loud: bool = Field(False, description="Say more.")
    inner: Inner = Inner()
    silent: str = "not an option"


def app_of(model: type[BaseModel], found: dict[str, Any]) -> typer.Typer:
    app = typer.Typer()

    def command(**values: Any) -> None:
        found.update(options.given(model, values))

    app.command()(options.with_parameters(command, options.parameters(model), "Do it."))
    return app


def parsed(model: type[BaseModel], *words: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    done = CliRunner().invoke(app_of(model, found), list(words))
    assert done.exit_code == 0, done.output
    return found


def test_only_given_options_are_set_as_nested_tables() -> None:
    assert parsed(Model) == {}
    assert parsed(Model, "--rate", "2", "--size", "3") == {"rate": 2.0, "inner": {"size": 3}}
    assert parsed(Model, "--name", "a", "--name", "b", "--no-loud") == {
        "loud": False,
        "inner": {"names": ["a", "b"]},
    }


def test_invalid_numbers_are_rejected_by_the_model() -> None:
    assert parsed(Model, "--size", "large") == {"inner": {"size": "large"}}
    with pytest.raises(SpecError, match="ranks: expected a whole number"):
        build_spec({"command": ["a"], **parsed(JobSpec, "-np", "two")})


@pytest.mark.parametrize("model", [JobSpec, TrainConfig])
def test_options_are_unique_and_have_help(model: type[BaseModel]) -> None:
    found: Any = typer.main.get_command(app_of(model, {})).params
    names = Counter(name for one in found for name in (*one.opts, *one.secondary_opts))
    assert set(names.values()) == {1}
    assert all(one.help for one in found)


def test_a_flag_overrides_its_environment_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAUNCHER_OUTPUT", "/elsewhere")
    assert parsed(JobSpec) == {"output": "/elsewhere"}
    assert parsed(JobSpec, "-o", "here") == {"output": "here"}
