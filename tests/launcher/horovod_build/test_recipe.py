"""The definition of a build: edits that fit the source, and one wheel per recipe."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import LauncherError
from launcher.horovod_build.build import default_cache, unpack
from launcher.horovod_build.machine import build_environment
from launcher.horovod_build.recipe import ARCHIVE, Edit, Recipe

RECIPE = Recipe("2.21.0", "cp311", "x86_64", "open-mpi-4.1.8", "../../../..", gpu=False)


def test_edit_refuses_a_source_it_was_not_made_for(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("add_library(a)\nadd_library(a)\n")
    with pytest.raises(LauncherError, match=r"once in CMakeLists\.txt\. Received: 2 times"):
        Edit("CMakeLists.txt", "add_library(a)\n", "").apply(tmp_path)


@pytest.mark.parametrize("gpu", [False, True])
def test_every_edit_applies_to_the_source_exactly_once(gpu: bool, tmp_path: Path) -> None:
    archive = default_cache() / ARCHIVE
    if not archive.exists():
        pytest.skip("the source of Horovod is not in the cache: launcher install-horovod")
    unpack(archive, tmp_path)
    [source] = tmp_path.iterdir()
    for edit in replace(RECIPE, gpu=gpu).edits:
        before = (source / edit.path).read_text().splitlines()
        edit.apply(source)
        after = (source / edit.path).read_text().splitlines()
        assert len(set(before) ^ set(after)) < 16, edit
    headers = (source / "CMakeLists.txt").read_text()
    assert "-include string -include stdexcept -include cstdint" in headers


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_recipes_that_differ_never_share_a_wheel(name: str) -> None:
    change: dict[str, Any] = {name: not RECIPE.gpu if name == "gpu" else "another"}
    other = replace(RECIPE, **change)
    assert other.cache_name != RECIPE.cache_name
    assert other.version != RECIPE.version


def test_gpu_recipe_reduces_through_nccl() -> None:
    assert RECIPE.switches["HOROVOD_WITHOUT_GPU"] == "1"
    gpu = replace(RECIPE, gpu=True).switches
    assert gpu["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert "HOROVOD_WITHOUT_GPU" not in gpu


@pytest.mark.parametrize(
    ("cxx", "c"),
    [
        ("g++-13", "gcc-13"),
        ("/usr/bin/clang++-19", "/usr/bin/clang-19"),
        ("x86_64-linux-gnu-g++", "x86_64-linux-gnu-gcc"),
        ("c++", "cc"),
    ],
)
def test_a_machine_without_cc_builds_with_the_c_compiler_beside_cxx(
    cxx: str, c: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", cxx)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert build_environment(RECIPE)["CC"] == c
    monkeypatch.setenv("CC", "mine")
    assert build_environment(RECIPE)["CC"] == "mine"
