"""The house: what is installed, what an import costs, and which part may know which (DESIGN 10)."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import unimodal_ar

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"unimodal_ar": "unimodal_ar", "adapters": "unimodal_ar/adapters", "recipes": "unimodal_ar/recipes"}
MAX_LINES = 400

# Part of the package -> layer. A part imports its own layer and those below it.
LAYERS = {
    part: layer
    for layer, parts in enumerate(
        [
            {"_compat", "_version", "fingerprint", "intact", "layout", "masks", "merging", "noise", "places"}
            | {"ranks", "schema", "segment", "sequence", "stamp", "tables"},
            {"backbone", "configuration", "curriculum", "decoder", "embeddings", "generation", "heads"}
            | {"body_source", "lora", "modality", "objectives", "positions", "pretrained", "sharing"},
            {"modeling"},
            {"adapters", "card", "convert", "evaluation", "export", "fitting", "forecast", "forecasting", "hub"}
            | {"pipelines", "prompts", "saving", "training"},
            {"__main__", "cli", "commands", "recipes"},
            {"unimodal_ar"},  # the package's own __init__, which gathers the public names
        ]
    )
    for part in parts
}
CORE = {part for part, layer in LAYERS.items() if layer <= LAYERS["modeling"]}
ADAPTERS_MAY_IMPORT = {"adapters", "fingerprint", "layout", "places", "schema", "segment"}
OPTIONAL = {
    *("PIL", "av", "datasets", "decord", "diffusers", "gluonts", "matplotlib", "onnx", "onnxruntime"),
    *("onnxscript", "pandas", "pyarrow", "sklearn", "soundfile", "torch_fidelity", "torchaudio", "torchmetrics"),
    "vega_datasets",
}
MODALITIES = {"audio", "image", "images", "speech", "time_series", "timeseries", "video", "videos"}


def _sources(suffix: str) -> dict[str, Path]:
    """Path inside the installed package -> file in the repository."""
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}": path
        for folder, target in MAPPED.items()
        for path in sorted((ROOT / folder).rglob(f"*{suffix}"))
    }


def _module(installed: str) -> str:
    return installed.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {_module(installed): path for installed, path in _sources(".py").items()}


def _part(module: str) -> str:
    """unimodal_ar.heads.mixture -> heads; the package itself -> unimodal_ar."""
    return module.split(".")[1] if "." in module else module


def _imports(module: str, path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, inside functions, too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return {name for name in found if name.split(".")[0] == "unimodal_ar"}


def _literals(path: Path) -> list[ast.Constant]:
    """String constants of a file that are not docstrings or other bare expressions."""
    tree = ast.parse(path.read_text())
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare
    ]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy (a build writes into its tree) and unpacked as an installation would be."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in MAPPED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(copy / done.stdout.splitlines()[-1]) as archive:
        archive.extractall(site)
    return site


def _run(code: str, site: Path) -> list[str]:
    """Words that `code` prints in a fresh process outside the repository that finds packages in `site` first."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=site, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_version_is_that_of_the_installed_package() -> None:
    assert unimodal_ar.__version__ == importlib.metadata.version("unimodal-ar")


def test_command_is_installed() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="unimodal-ar")
    assert callable(command.load())


def test_wheel_holds_every_source_and_recipe(wheel: Path) -> None:
    expected = set(_sources(".py")) | set(_sources(".yaml")) | {"unimodal_ar/py.typed"}
    expected |= {"unimodal_ar/card/template.md"}
    assert any(name.endswith(".yaml") for name in expected), "no recipe found: this test looks in the wrong place"
    installed = {
        path.relative_to(wheel).as_posix()
        for path in wheel.rglob("*")
        if path.is_file() and ".dist-info" not in str(path.relative_to(wheel))
    }
    assert installed == expected


def test_mapped_packages_import_from_the_wheel(wheel: Path) -> None:
    code = (
        "import unimodal_ar.adapters as a, unimodal_ar.recipes as r; from importlib.resources import files;"
        "print(a.__file__, r.__file__, *[f.name for f in files(r).joinpath('next_patch').iterdir()])"
    )
    adapters, recipes, *names = _run(code, wheel)
    assert Path(adapters) == wheel / "unimodal_ar/adapters/__init__.py"
    assert Path(recipes) == wheel / "unimodal_ar/recipes/__init__.py"
    assert "temperature.yaml" in names


@pytest.mark.parametrize("module", [name for name in MODULES if name.rpartition(".")[2] not in OPTIONAL])
def test_optional_packages_are_imported_when_they_are_used(module: str) -> None:
    """By the source, not by what is loaded: transformers imports some of them itself where they are installed."""
    found = set()
    for node in ast.parse(
        MODULES[module].read_text()
    ).body:  # what stands in functions, or is for type checkers, is not
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    assert not found & OPTIONAL


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    part = _part(module)
    assert part in LAYERS, f"{part} has no layer: add it to LAYERS in this file"
    imported = {_part(name) for name in _imports(module, MODULES[module])}
    above = sorted(name for name in imported if LAYERS[name] > LAYERS[part])
    assert not above, f"{module} imports {above} from a layer above its own"
    if part == "adapters":
        assert imported <= ADAPTERS_MAY_IMPORT, f"adapters know {sorted(ADAPTERS_MAY_IMPORT)} only"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: _imports(module, path) for module, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", [name for name in MODULES if _part(name) in CORE])
def test_core_names_no_modality(module: str) -> None:
    named = {f"line {node.lineno}: {node.value!r}" for node in _literals(MODULES[module]) if node.value in MODALITIES}
    assert not named, f"{module} knows a modality by name: what differs belongs in the config"


def test_files_are_short() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > MAX_LINES} == {}


def test_uninitialised_memory_is_poisoned() -> None:
    """Of conftest: with zeros instead, code that forgets to fill a tensor would pass by luck."""
    assert torch.empty(8).isnan().all()
    assert torch.nn.Linear(3, 2).weight.new_empty(4).isnan().all()
