"""All that README and the documentation name exists: files, classes, functions, anchors, trainers, commands."""

import ast
import re
import shlex
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.commands.main import COMMANDS, command_parser
from nnunetv2_dinomed3d.settings import PREFIX, VARIABLES
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.registry import BASE, FAMILIES, SUFFIX_GROUPS, suffix, trainer_class

pytestmark = pytest.mark.own

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nnunetv2_dinomed3d"
FILES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PAGES = {str(file.relative_to(ROOT)): file.read_text() for file in FILES if file.name != "CHANGELOG.md"}
FOREIGN = {"torch"}
"""Other packages whose functions the pages name."""

NOT_OURS = {"my_trainers/longer.py", "crossval_DATASET.sh", "crossval_DATASET_2.sh", "figures/"}
"""What a user or a command writes."""

ENDINGS = {"csv", "gz", "html", "json", "lock", "md", "nii", "npz", "pkl", "png", "pt", "pth", "py", "safetensors"} | {
    "tar",
    "zip",
}
"""Words after a dot that make a name a file's."""


def code(page: str) -> list[str]:
    """The words in backticks of a page, without its blocks of code."""
    prose = re.sub(r"^( *)```.*?^\1```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]


@cache
def defined(file: Path) -> set[str]:
    """The classes, functions and constants of a file, and a class's members after a dot."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            members = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            found |= {node.name, *(f"{node.name}.{member.name}" for member in members)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def exists(name: str) -> bool:
    """Whether a dotted name is a module of the package, or something that one of them defines.

    ``module.function`` may leave out the folders above, ``Class.method`` the module.
    """
    files = list(PACKAGE.rglob("*.py"))
    words = name.removeprefix("nnunetv2_dinomed3d.").split(".")
    for count in range(len(words), 0, -1):
        path = "/".join(words[:count])
        here = [file for file in files if f"/{file.with_suffix('').as_posix()}".endswith(f"/{path}")]
        here += [file for file in files if f"/{file.as_posix()}".endswith(f"/{path}/__init__.py")]
        if any(count == len(words) or ".".join(words[count:]) in defined(file) for file in here):
            return True
    return any(name in defined(file) for file in files)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        linked = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.+)$", PAGES[str(linked.relative_to(ROOT))], re.MULTILINE) if anchor else []
        assert not anchor or anchor in map(slug, headings), target


def test_files_exist() -> None:
    """A file or folder (which ends with a slash) may be named from the repository, the package or the tests."""
    pattern = r"[\w./-]+\.(py|sh|toml|yml|cff|txt)|\.ci/\w+|(\w+/)+"
    named = {(page, name) for page in PAGES for name in code(page) if re.fullmatch(pattern, name)}
    assert {page for page, _ in named} >= {"README.md", "docs/paper.md", "docs/performance.md", "CONTRIBUTING.md"}
    for page, name in sorted(named):
        places = [ROOT / name, PACKAGE / name, ROOT / "tests" / name, *PACKAGE.rglob(name)]
        assert name in NOT_OURS or any(place.exists() for place in places), f"{page}: {name}"


def test_classes_and_functions_exist() -> None:
    dotted = r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(\))?"
    found = [(page, re.fullmatch(dotted, name)) for page in PAGES for name in code(page)]
    named = {(page, match[1]) for page, match in found if match}
    named = {(page, name) for page, name in named if name.split(".")[-1] not in ENDINGS and name not in NOT_OURS}
    for page, name in sorted(named):
        assert name.split(".")[0] in FOREIGN or exists(name), f"{page}: {name}"


def test_modules_of_the_api_pages() -> None:
    """mkdocstrings would fail too, but only where the site is built."""
    shown = [name for text in PAGES.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    assert {"nnunetv2_dinomed3d.network_architecture", "nnunetv2_dinomed3d.weights"} <= set(shown)
    assert all(exists(name) for name in shown), shown


def test_every_page_is_in_the_sites_menu() -> None:
    menu = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(f"docs/{name}" for name in menu) == sorted(page for page in PAGES if page.startswith("docs/"))


@pytest.mark.parametrize("page", PAGES)
def test_trainers(page: str) -> None:
    for name in re.findall(rf"\b{BASE}\w*", PAGES[page]):
        trainer_class(name.split("__")[0])


def commands(program: str) -> list[list[str]]:
    """The words of every command line in the pages that starts this program, or programs that start so."""
    lines = [line for text in PAGES.values() for line in text.splitlines() if line.startswith("    ")]
    found = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(command, comments=True) for command in found if re.match(rf"{program}\w* ", command)]


def test_our_commands_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is typed as the pages have it, names in capitals included."""
    found = [words[1:] for words in commands("dinomed3d")]
    assert {words[0] for words in found} == set(COMMANDS) - {"trainer-path"}
    for name, *words in found:
        try:
            command_parser(name).parse_args(words)
        except SystemExit:
            pytest.fail(f"dinomed3d {name} {shlex.join(words)}: {capsys.readouterr().err}")


def test_options_of_nnunets_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """nnU-Net's own parsers know them."""
    scripts = {script.name: script for script in metadata.entry_points(group="console_scripts")}
    found = commands("nnUNetv2_")
    assert {words[0] for words in found} >= {"nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_plan_and_preprocess"}
    for name in {words[0] for words in found}:
        entry = scripts[name].load()
        monkeypatch.setattr("sys.argv", [name, "-h"])
        with pytest.raises(SystemExit, match="0"):
            entry()
        known = set(re.findall(r"(?<![\w-])--?\w+", capsys.readouterr().out))
        for words in found:
            options = {word for word in words if re.match(r"--?[a-z]", word)}
            assert words[0] != name or options <= known, (words, options - known)


def test_settings() -> None:
    named = {name for text in PAGES.values() for name in re.findall(rf"\b{PREFIX}[A-Z]\w+", text)}
    assert named == set(VARIABLES)


@pytest.mark.usefixtures("nnunet_environment")
def test_stock_trainers() -> None:
    """nnU-Net has the trainers of its own that the pages compare with."""
    text = "".join(PAGES.values())
    names = {name.split("__")[0] for name in re.findall(r"\bnnUNetTrainer\w*", text)}
    families = {family.prefix for family in FAMILIES}
    names = {name for name in names - families if not name.startswith(BASE)} - set(re.findall(r"class (\w+)\(", text))
    assert "nnUNetTrainer_100epochs" in names
    for name in names:
        recursive_find_trainer_class_by_name(name)


@pytest.mark.parametrize("page", ["README.md", "docs/paper.md"])
def test_every_suffix_is_there(page: str) -> None:
    named = set(re.findall(r"`(_\w+)`", PAGES[page]))
    assert named >= {suffix(trainer) for trainers in SUFFIX_GROUPS.values() for trainer in trainers} - (
        {"_nano", "_20epochs", "_250epochs", "_1000epochs"} if "paper" in page else set()
    )


def test_tests_that_cover_nnunets_features() -> None:
    """docs/compatibility.md names a test by a part of its name."""
    rows = [line.strip("|").split("|") for line in PAGES["docs/compatibility.md"].splitlines() if line.count("|") == 5]
    words = [word for row in rows for word in re.findall(r"`(\w+)(?:\[[\w ]+\])?`", row[2])]
    assert len(words) > 20
    tests = "".join(re.findall(r"^def (test_\w+)", "".join(map(Path.read_text, (ROOT / "tests").glob("*.py"))), re.M))
    assert not [word for word in words if word not in tests]


def rows_of_the_paper() -> list[list[str]]:
    """The cells of docs/paper.md's table of where things are: part, section, equation, module, class, attribute."""
    lines = PAGES["docs/paper.md"].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| part | section | equation | module |"))
    table = [line for line in lines[start + 2 : lines.index("", start)]]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_classes_of_the_paper() -> None:
    """A class or function stands in the module beside it."""
    rows = rows_of_the_paper()
    assert len(rows) > 20
    assert {"1", "2", "3"} <= {row[2] for row in rows}
    for row in rows:
        modules = [PACKAGE / name for name in re.findall(r"`([\w/]+\.py)`", row[3])]
        assert modules, row
        known = set().union(*(defined(module) for module in modules if module.exists()))
        assert set(re.findall(r"`(\w+)`", row[4])) <= known, row


def test_attributes_of_the_paper() -> None:
    attributes = {name for row in rows_of_the_paper() for name in re.findall(r"`([a-z]\w+)`", row[5])}
    assert {"slab_depth", "rope_rescale", "stages"} <= attributes
    assert all(hasattr(nnUNetTrainerDINOMed3D, name) for name in attributes), attributes


def test_attributes_of_a_trainer_of_ones_own() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", PAGES["docs/own_trainer.md"], re.MULTILINE)
    attributes = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert "stage2_epochs" in attributes
    assert all(hasattr(nnUNetTrainerDINOMed3D, name) for name in attributes), attributes


def test_the_version_that_is_cited() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
