"""Rooms and who may import whom (the table of rooms in the design): read from the source with ast."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import hierclass

ROOT = Path(__file__).parent.parent
ROOMS = ("taxonomy", "hierclass", "training", "benchmarks")
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py")) + sorted(ROOT.glob("app.py"))

TORCH = {"torch", "torchvision", "timm", "safetensors", "accelerate"}
IMAGES = {"PIL", "cv2", "imageio"}
FORBIDDEN: dict[str, set[str]] = {
    "taxonomy": {
        "hierclass",
        "training",
        "app",
        "benchmarks",
        "gradio",
        "sklearn",
        "pandas",
        *TORCH,
        *IMAGES,
    },
    "hierclass": {"training", "app", "benchmarks", "nltk", "sklearn", "gradio", "accelerate", "pandas"},
    "hierclass/nested": {
        "taxonomy",
        "pathlib",
        "os",
        "io",
        "shutil",
        "json",
        "pickle",
        "safetensors",
        *IMAGES,
    },
    "training": {"app", "benchmarks", "gradio", "nltk"},
    "app.py": {"training", "benchmarks", "numpy", "sklearn", "nltk", *TORCH, "cv2"},
    "benchmarks": {"app", "gradio"},
}
_WITH_WIDGETS = ("widgets", "tab_single", "tab_batch", "tab_model", "endpoints", "layout")
ALLOWED = {f"hierclass/page/{name}.py": {"gradio"} for name in _WITH_WIDGETS}
"""Files that may import what their room may not."""
STANDARD_PLUS = {"taxonomy": {"numpy", "typer", "rich", "nltk", "taxonomy"}}
"""Rooms that hold the standard library and these packages only."""


class Import(NamedTuple):
    file: str
    line: int
    module: str
    in_function: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports_of(file: Path, source: str | None = None) -> Iterator[Import]:
    """Every import of a file, inside functions and `if TYPE_CHECKING` too, relative ones made absolute."""
    name = file.relative_to(ROOT).as_posix()
    package = name.removesuffix(".py").split("/")[:-1]

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(name, child.lineno, alias.name, in_function)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                yield Import(
                    name, child.lineno, ".".join([*base, *filter(None, [child.module])]), in_function
                )
            elif isinstance(child, ast.Call) and _imports_by_name(child):
                yield Import(name, child.lineno, ast.literal_eval(child.args[0]), in_function)
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, in_function or function)

    yield from walk(ast.parse(source or file.read_text(encoding="utf-8")), False)


def _imports_by_name(call: ast.Call) -> bool:
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = bool(call.args) and isinstance(call.args[0], ast.Constant)
    return named and called in ("import_module", "__import__")


def rooms_of(name: str) -> list[str]:
    return [room for room in FORBIDDEN if name == room or name.startswith(f"{room}/")]


def upward(found: Import) -> bool:
    forbidden = {package for room in rooms_of(found.file) for package in FORBIDDEN[room]}
    return found.package in forbidden - ALLOWED.get(found.file, set())


EVERY = [found for file in FILES for found in imports_of(file)]


def where(found: list[Import]) -> list[str]:
    return [f"{item.file}:{item.line} imports {item.module}" for item in found]


def test_every_room_is_read() -> None:
    assert {rooms_of(file.relative_to(ROOT).as_posix())[0] for file in FILES} >= {
        "taxonomy",
        "hierclass",
        "training",
    }
    assert any("hierclass/nested" in rooms_of(found.file) for found in EVERY)


def test_class_names_are_unique() -> None:
    places: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):  # private and nested ones, too
                places.setdefault(node.name, []).append(f"{file.relative_to(ROOT).as_posix()}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_nothing_imports_upward() -> None:
    assert where([found for found in EVERY if upward(found)]) == []


def test_the_taxonomy_needs_the_standard_library_numpy_and_what_draws_its_command_line() -> None:
    known = STANDARD_PLUS["taxonomy"] | sys.stdlib_module_names
    own = [found for found in EVERY if "taxonomy" in rooms_of(found.file)]
    assert where([found for found in own if found.package not in known]) == []
    drawing = [found for found in own if found.package in ("typer", "rich")]
    assert {found.file for found in drawing} <= {
        "taxonomy/cli.py",
        "taxonomy/terminal.py",
        "taxonomy/__main__.py",
    }


def test_the_taxonomy_has_no_circle_of_imports() -> None:
    files = sorted((ROOT / "taxonomy").glob("*.py"))
    modules = {file: f"taxonomy.{file.stem}".removesuffix(".__init__") for file in files}
    needs = {modules[file]: set(_needed(file, set(modules.values()))) for file in files}
    order = list(graphlib.TopologicalSorter(needs).static_order())  # raises where there is a circle
    assert order.index("taxonomy.tree") < order.index("taxonomy.build") < order.index("taxonomy")


def _needed(file: Path, modules: set[str]) -> Iterator[str]:
    """The modules among `modules` that a file imports; `from taxonomy import tree` needs tree, not the package."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom):
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (named & modules) | ({str(node.module)} & modules if named - modules else set())


def test_nltk_is_imported_in_one_file_and_only_when_a_tree_is_built() -> None:
    found = [item for item in EVERY if item.package == "nltk"]
    assert {item.file for item in found} <= {"taxonomy/wordnet.py"}
    assert where([item for item in found if not item.in_function]) == []


def test_what_the_page_shows_is_imported_by_the_page_alone() -> None:
    found = [item for item in EVERY if item.module.startswith("hierclass.page")]
    others = {item.file for item in found if not item.file.startswith("hierclass/page/")}
    assert others == {"app.py", "benchmarks/fuzzing.py"}  # which unpacks damaged zip files


def test_plotly_is_imported_in_one_file_and_only_when_a_figure_is_drawn() -> None:
    found = [item for item in EVERY if item.package == "plotly"]
    assert {item.file for item in found} == {"hierclass/page/figures.py"}
    source = (ROOT / "hierclass" / "page" / "figures.py").read_text(encoding="utf-8")
    top = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert "plotly" not in ast.unparse(ast.Module(top, []))


def test_cutting_networks_touches_no_files() -> None:
    for file in (ROOT / "hierclass" / "nested").rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        names = {getattr(call, "id", getattr(call, "attr", "")) for call in calls}
        assert not names & {"open", "load", "save", "read_text", "write_text", "read_bytes", "write_bytes"}, (
            file.name
        )


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("taxonomy/tree.py", "import hierclass"),
        ("taxonomy/tree.py", "def f():\n    from torch import nn"),
        ("hierclass/images/decoding.py", "from nltk.corpus import wordnet"),
        ("hierclass/cli.py", "if True:\n    import training.cli"),
        ("hierclass/cli.py", "import importlib\nimportlib.import_module('gradio')"),
        ("hierclass/nested/build.py", "from taxonomy import Taxonomy"),
        ("training/trainer/network.py", "import app"),
        ("app.py", "import numpy as np"),
    ],
)
def test_the_reader_of_imports_sees_an_upward_one(file: str, source: str) -> None:
    assert any(upward(found) for found in imports_of(ROOT / file, source))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("hierclass/nested/build.py", "from . import graph"),
        ("training/trainer/network.py", "from hierclass.nested import nest"),
    ],
)
def test_the_reader_of_imports_lets_a_downhill_one_pass(file: str, source: str) -> None:
    assert not any(upward(found) for found in imports_of(ROOT / file, source))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "package", ["hierclass", "hierclass.errors", "hierclass.cli", "hierclass.images.decoding", "taxonomy"]
)
def test_importing_costs_no_torch(package: str) -> None:
    code = f"import sys, {package}; print(sorted(set({sorted(TORCH)!r}) & sys.modules.keys()))"
    assert run_python(code) == "[]"


def test_importing_the_taxonomy_costs_nothing() -> None:
    code = "import sys, taxonomy; print(sorted({'nltk', 'typer', 'rich', 'numpy'} & set(sys.modules)))"
    assert run_python(code) == "[]"


def test_torch_is_imported_where_networks_are_made_and_by_its_own_runtime_alone() -> None:
    found = {item.file for item in EVERY if item.package in {"torch", "torchvision", "timm"}}
    ours = {file for file in found if file.startswith("hierclass/")}
    rooms = ("hierclass/nested/", "hierclass/export/", "hierclass/timm_models/")
    assert {file for file in ours if not file.startswith(rooms)} == {
        "hierclass/checkpoints/bounded_build.py",
        "hierclass/checkpoints/checkpoint.py",
        "hierclass/checkpoints/compress.py",
        "hierclass/checkpoints/new_classes.py",
        "hierclass/checkpoints/proven.py",
        "hierclass/runtime/choice.py",  # asks whether there is a GPU, where the system shows one
        "hierclass/runtime/torch_runtime.py",
    }
    choosing = [item for item in EVERY if item.file == "hierclass/runtime/choice.py"]
    assert all(item.in_function for item in choosing if item.package == "torch")


USERS_OF_ONNXRUNTIME = {"hierclass/export/int8.py", "hierclass/export/example.py"}
"""Imports its quantiser after that function; a program of its own that sets the same variable."""


def test_onnxruntime_is_imported_by_one_function_which_keeps_it_from_sending_anything() -> None:
    found = {item.file for item in EVERY if item.package == "onnxruntime"}
    assert found - USERS_OF_ONNXRUNTIME == {"hierclass/runtime/onnx_runtime.py"}


def test_the_namespace_is_what_all_says() -> None:
    assert sorted(hierclass.__all__) == sorted(set(hierclass.__all__))
    assert dir(hierclass) == sorted(hierclass.__all__)
    for name in hierclass.__all__:
        assert getattr(hierclass, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        hierclass.nonsense  # noqa: B018


def test_every_error_of_the_package_is_a_hierclass_error() -> None:
    errors = [getattr(hierclass, name) for name in hierclass.__all__ if name.endswith("Error")]
    assert all(issubclass(error, hierclass.HierclassError) for error in errors)
    assert len(errors) == 8
