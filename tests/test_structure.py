"""The floors of the package. Imports go downwards only and in no circle, and no file is too long to read.

Imports are read from the source, those inside functions and under TYPE_CHECKING included: what a module knows counts,
not when it is imported.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.own

ROOT = Path(__file__).parents[1]
PACKAGE = "nnunetv2_dinomed3d"
MAX_LINES = 400

FLOORS = [
    ["text", "processes", "settings", "written", "folder_lock", "versions", "moved"],
    ["nnunet_files", "training_log", "dataset_json", "pictures", "trainer_names"],
    ["network_architecture"],
    ["weights"],
    ["planning"],
    ["trainers.harness"],
    ["trainers.baselines", "trainers.dinomed3d"],
    ["trainers.registry"],
    ["evaluation"],
    ["look", "demo", "datasets", "prediction", "exporting"],
    ["commands"],
    ["__main__", "nnunet_entry"],
]
"""The rooms from the ground up. A room imports rooms of lower floors; only on the two lowest, neighbours too."""

FORBIDDEN = {
    "network_architecture": ["nnunetv2", "batchgenerators", "batchgeneratorsv2"],
    "weights": ["nnunetv2", "batchgenerators", "batchgeneratorsv2"],
    "evaluation": ["torch", "nnunetv2"],
    "datasets": ["torch"],
}
"""Other packages that a room does not import, neither itself nor through rooms below it."""

ALLOWED = {"evaluation": FLOORS[0] + FLOORS[1]}
"""Rooms that know less than their floor would let them."""


def imports(file: Path, modules: dict[str, Path]) -> set[str]:
    """The modules that a file imports, by their full names; of other packages the first word."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise AssertionError(f"{file}, line {node.lineno}: a relative import")
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return {name if name.partition(".")[0] == PACKAGE else name.partition(".")[0] for name in found}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in sorted((ROOT / PACKAGE).rglob("*.py"))}
IMPORTS = {name: imports(file, MODULES) for name, file in MODULES.items()}


def room(module: str) -> str:
    """The room that a module stands in, such as "weights" or "trainers.harness"."""
    inside = module.removeprefix(f"{PACKAGE}.")
    return next((room for floor in FLOORS for room in floor if f"{inside}.".startswith(f"{room}.")), "")


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def known(module: str) -> Iterator[str]:
    """The modules of ours that a module imports; the package itself holds the version alone and is nobody's floor."""
    return (name for name in sorted(IMPORTS[module]) if name in MODULES and room(name))


def test_every_module_has_a_room() -> None:
    """A new module or folder belongs to a floor: say in FLOORS to which."""
    empty = {name for name, file in MODULES.items() if not IMPORTS[name] and file.name == "__init__.py"}
    assert not [name for name in MODULES if not room(name) and name != PACKAGE and name not in empty]


@pytest.mark.parametrize("module", [name for name in MODULES if room(name)])
def test_imports_go_downwards(module: str) -> None:
    here = room(module)
    for name in known(module):
        there = room(name)
        neighbours = floor(there) == floor(here) <= 1
        assert there == here or neighbours or floor(there) < floor(here), f"{module} imports {name} above it"
        assert there == here or there in ALLOWED.get(here, [there]), f"{module} knows {name}"


def test_the_package_itself_imports_next_to_nothing() -> None:
    """``import nnunetv2_dinomed3d`` costs nothing: what it offers is imported when it is asked for."""
    body = ast.parse(MODULES[PACKAGE].read_text()).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        f"{node.module}.{alias.name}" for node in body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {name for name in names if name.partition(".")[0] == PACKAGE} <= {f"{PACKAGE}.moved"}
    assert {name.partition(".")[0] for name in names} - {PACKAGE} <= sys.stdlib_module_names
    assert IMPORTS[f"{PACKAGE}.moved"] <= sys.stdlib_module_names


def test_no_circles() -> None:
    graph = {name: set(known(name)) - {name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("where", FORBIDDEN)
def test_packages_that_a_room_does_not_know(where: str) -> None:
    """The network is plain PyTorch, and a report is written where there is no PyTorch."""
    waiting = [name for name in MODULES if room(name) == where]
    assert waiting
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            foreign = IMPORTS[module] & set(FORBIDDEN[where])
            assert not foreign, f"{where} reaches {foreign} through {module}"
            waiting.extend(known(module))


@pytest.mark.parametrize("folder", [PACKAGE, "benchmarks"])
def test_a_file_reads_in_one_sitting(folder: str) -> None:
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in (ROOT / folder).rglob("*.py")}
    assert lines
    assert not {name: count for name, count in lines.items() if count > MAX_LINES}
