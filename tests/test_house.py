"""The house in order: the map, the import rules, and what the documents name.

`utils/__init__.py` is the map. It and CONTRIBUTING.md are compared with the folder. The
import rules stand in pyproject.toml: they hold, and each notices a planted breach.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter import api

from support.house_map import PAGE, UTILS, docstring, with_map
from utils.course import ROOT

PACKAGES = sorted(path.parent for path in UTILS.rglob("__init__.py"))
# Stands in for a package from which artifacts import names: the only one with code.
PACKAGES_WITH_CODE = {UTILS, UTILS / "djl_python"}
LINE = re.compile(r"^- ((?:`\w+`(?:, )?)+): .+", re.MULTILINE)
# What the documents say of experiments is looked for once there is one.
EXPERIMENTS = sorted((ROOT / "notebooks" / "experiments").glob("*.ipynb"))
# Not files of the repository.
IN_AN_ARTIFACT = {"model.py", "notes_search.py"}
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
CARDS = (
    "data/README.md",
    "data/lab_model/README.md",
    "data/aws/README.md",
    "notebooks/figures/README.md",
    "notebooks/guide.md",
    "tests/benchmarks/README.md",
)


# --- the map --------------------------------------------------------------------------


def named(text: str) -> list[str]:
    """The names that lines such as "- `faqs`: …" explain, in their order."""
    return [name for names in LINE.findall(text) for name in re.findall(r"\w+", names)]


def rooms(package: Path) -> list[str]:
    """Modules and folders of a package, but for `__init__` and `__main__`."""
    modules = {path.stem for path in package.glob("*.py")}
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    return sorted(name for name in modules | folders if not name.startswith("__"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES, ids=relative)
def test_each_room_has_one_line(package: Path) -> None:
    """A new module needs a line in the docstring of its folder's `__init__.py`."""
    assert sorted(named(docstring(package))) == rooms(package)


def test_a_room_without_a_line_and_a_line_without_a_room_are_noticed(tmp_path) -> None:
    package = tmp_path / "utils"
    shutil.copytree(UTILS, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "attic.py").touch()
    assert set(rooms(package)) - set(named(docstring(package))) == {"attic"}
    (package / "attic.py").unlink()
    (package / "files.py").unlink()
    assert set(named(docstring(package))) - set(rooms(package)) == {"files"}
    shutil.rmtree(package / "evaluation")
    assert "evaluation" not in rooms(package)


@pytest.mark.parametrize("package", PACKAGES, ids=relative)
def test_an_init_is_a_docstring_and_no_code(package: Path) -> None:
    body = ast.parse((package / "__init__.py").read_text("utf-8")).body
    assert docstring(package)
    assert len(body) == 1 or package in PACKAGES_WITH_CODE


def test_the_map_takes_one_line_a_room() -> None:
    lines = docstring(UTILS).splitlines()
    sentences = [line for line in lines if line and not line.endswith(":")]
    assert all(LINE.fullmatch(line) for line in sentences[1:])


def test_the_page_for_contributors_shows_the_map() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_map(text), "run `python tests/support/house_map.py`"


# --- the import rules -----------------------------------------------------------------

# For each contract of pyproject.toml: a file, what is planted in it, what is reported.
BREACHES = {
    "Imports go down the floors": [
        (
            "dataset/faqs.py",
            "from utils.training import recipe",
            "utils.dataset is not allowed to import utils.training",
        ),
        (
            "files.py",
            "def late():\n    import utils.models",
            "utils.files is not allowed to import utils.models",
        ),
        (
            "training/adapters.py",
            "from utils.deployment import prices",
            "utils.training is not allowed to import utils.deployment",
        ),
        ("attic.py", "NEW = True", "utils.attic"),
        (
            "temporary.py",
            "from utils import djl_python",
            "utils.temporary is not allowed to import utils.djl_python",
        ),
    ],
    "No circles": [
        ("training/recipe.py", "from utils.training import tracking", "utils.training"),
    ],
    "Deployment needs no other lesson's wing": [
        (
            "deployment/artifact.py",
            "from utils.dataset import faqs",
            "utils.deployment.artifact -> utils.dataset.faqs",
        ),
    ],
    "The entry point imports nothing of ours": [
        (
            "deployment/deployment_model.py",
            "from utils import helpers",
            "utils.deployment.deployment_model -> utils.helpers",
        ),
        (
            "deployment/deployment_model.py",
            "from utils.deployment import prices",
            "utils.deployment.deployment_model -> utils.deployment.prices",
        ),
        (
            "deployment/deployment_search.py",
            "from utils import encoder",
            "utils.deployment.deployment_search -> utils.encoder",
        ),
    ],
    "What Lambda runs imports nothing else of ours": [
        (
            "web/service/app.py",
            "from utils import helpers",
            "utils.web.service.app -> utils.helpers",
        ),
        (
            "web/service/records.py",
            "from utils.web import gateway",
            "utils.web.service.records -> utils.web.gateway",
        ),
    ],
    "The script to take home imports nothing of ours": [
        (
            "training/train_lora.py",
            "from utils import helpers",
            "utils.training.train_lora -> utils.helpers",
        ),
        (
            "training/train_lora.py",
            "from utils.training import recipe",
            "utils.training.train_lora -> utils.training.recipe",
        ),
    ],
    "A training job's script imports nothing of ours": [
        (
            "jobs/entry.py",
            "from utils import helpers",
            "utils.jobs.entry -> utils.helpers",
        ),
        (
            "jobs/entry.py",
            "from utils.training import train_lora",
            "utils.jobs.entry -> utils.training.train_lora",
        ),
        (
            "jobs/entry_data.py",
            "from utils.jobs import source",
            "utils.jobs.entry_data -> utils.jobs.source",
        ),
        (
            "jobs/entry_checkpoints.py",
            "from utils.files import write_json",
            "utils.jobs.entry_checkpoints -> utils.files",
        ),
    ],
    "The DJL stand-in imports nothing else of ours": [
        (
            "djl_python/server.py",
            "from utils.helpers import IGNORED",
            "utils.djl_python.server -> utils.helpers",
        ),
        (
            "djl_python/server.py",
            "from utils.temporary import temporary_folder",
            "utils.djl_python.server -> utils.temporary",
        ),
    ],
    "Nothing imports what shows, checks and runs the lessons": [
        (
            "models.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from utils import display",
            "utils.models -> utils.display",
        ),
        (
            "training/recipe.py",
            "from utils.exercises.frame import Wrong",
            "utils.training.recipe -> utils.exercises.frame",
        ),
        ("course.py", "import utils.run", "utils.course -> utils.run"),
        ("course.py", "import utils.road_map", "utils.course -> utils.road_map"),
        ("course.py", "import utils.whole", "utils.course -> utils.whole"),
    ],
    "Nothing imports the lab model's workshop": [
        (
            "training/recipe.py",
            "from utils.lab_model import corpus",
            "utils.training.recipe -> utils.lab_model.corpus",
        ),
    ],
    "Only the account knows the offline AWS": [
        (
            "deployment/serving.py",
            "from utils.offline_aws import names",
            "utils.deployment.serving -> utils.offline_aws.names",
        ),
    ],
    "Few doors lead to the DJL stand-in": [
        (
            "training/adapters.py",
            "from utils.djl_python import layout",
            "utils.training.adapters -> utils.djl_python.layout",
        ),
        (
            "files.py",
            "from utils.djl_python import archives",
            "utils.files -> utils.djl_python.archives",
        ),
    ],
}


def lint_imports(folder: Path) -> tuple[bool, str]:
    """Check the package `utils` of a folder; returns whether all holds, and the report.

    Args:
        folder: holds `utils` and `pyproject.toml`.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    return done.returncode == 0, done.stdout


def breaches(report: str, contract: str) -> str:
    """What the linter's report says of a broken contract; "" if it holds."""
    _, _, broken = report.partition("Broken contracts")
    found = re.search(rf"^{re.escape(contract)}\n-+\n", broken, re.MULTILINE)
    if not found:
        return ""
    text = broken[found.end() :]
    following = re.search(r"^[^\n]+\n-{4,}\n", text, re.MULTILINE)
    return " ".join(text[: following.start() if following else None].split())


def test_the_import_rules_hold() -> None:
    held, report = lint_imports(ROOT)
    assert held, report


def test_each_contract_has_a_planted_breach() -> None:
    options = api.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    assert [contract["name"] for contract in options] == list(BREACHES)


@pytest.mark.parametrize(
    ("contract", "file", "code", "reported"),
    [(contract, *case) for contract, cases in BREACHES.items() for case in cases],
)
def test_a_planted_breach_is_noticed(
    tmp_path: Path, contract: str, file: str, code: str, reported: str
) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(UTILS, tmp_path / "utils", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "utils" / file).open("a", encoding="utf-8") as planted:
        planted.write(f"\n{code}\n")
    held, report = lint_imports(tmp_path)
    assert not held
    assert reported in breaches(report, contract), report


# --- what the documents name ----------------------------------------------------------


def code_in(text: str) -> str:
    """Everything that a document sets as code, one piece a line."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text)])


def targets() -> set[str]:
    phony = re.search(
        r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    return set(phony[1].split())


def missing_paths(text: str, folder: Path) -> list[str]:
    """Links and paths of a document that lead nowhere.

    NN stands for two digits, snake_case for any name, * for anything.

    Args:
        text: of the document.
        folder: in which it lies; a path may start here or at the root.
    """
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(
        r"(?<![\w./<-])(?:utils|tests|data|notebooks|\.ci)/[\w./*]*|"
        r"(?<![\w./<*-])\w+\.(?:py|md|csv|toml|txt|svg|ipynb)\b",
        code_in(text),
    )

    def exists(path: str) -> bool:
        if "experiment" in path and not EXPERIMENTS:
            return True
        pattern = path.replace("NN", "[0-9][0-9]").replace("snake_case", "*")
        places = (ROOT, folder, UTILS) if path == "__init__.py" else (ROOT, folder)
        return any(next(place.glob(pattern.rstrip("/")), None) for place in places)

    missing = [link for link in links if not (folder / link).exists()]
    return missing + [p for p in paths if p not in IN_AN_ARTIFACT and not exists(p)]


def missing_names(text: str) -> list[str]:
    """Commands, modules, functions, tests and options that a document invents."""
    code = code_in(text)
    missing = []
    for module in re.findall(r"python -m (utils[\w.]*)", code):
        path = ROOT / module.replace(".", "/")
        command = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        source = command.read_text("utf-8") if command.exists() else ""
        if command.name != "__main__.py" and "__main__" not in source:
            missing.append(f"python -m {module}")
    for name in re.findall(r"(?<![\w.])utils\.\w[\w.]*", code):
        *parents, last = name.split(".")
        room = ROOT.joinpath(*parents, last)
        module = ROOT.joinpath(*parents).with_suffix(".py")
        source = module.read_text("utf-8") if module.is_file() else ""
        defined = rf"^(?:def |class ){last}\b|^{last}\b.*="
        if not (room.is_dir() or room.with_suffix(".py").is_file()) and not re.search(
            defined, source, re.MULTILINE
        ):
            missing.append(name)
    for name in re.findall(r"\btest_\w+\b", code):
        if not (ROOT / "tests" / f"{name}.py").is_file():
            missing.append(name)
    for script, options in re.findall(r"(tests/[\w/]+\.py)((?: --[a-z-]+)*)", code):
        source = (ROOT / script).read_text("utf-8") if (ROOT / script).is_file() else ""
        missing += [
            f"{Path(script).name} {option}"
            for option in options.split()
            if f'"{option}"' not in source
        ]
    return missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_of_make_exist(document: str) -> None:
    code = code_in((ROOT / document).read_text("utf-8"))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code)) <= targets()


def test_contributing_explains_each_target_of_make() -> None:
    code = code_in((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    explained = set(re.findall(r"^make ([a-z][a-z-]*)", code, re.MULTILINE))
    assert explained == targets()


@pytest.mark.parametrize("document", [*DOCUMENTS, *CARDS])
def test_what_a_document_names_exists(document: str) -> None:
    text, folder = (ROOT / document).read_text("utf-8"), (ROOT / document).parent
    assert not missing_paths(text, folder)
    assert not missing_names(text)


def test_what_does_not_exist_is_noticed() -> None:
    text = "`utils/faqs.py`, [this](data/none.md), `utils/files.py` and `attic.csv`"
    assert missing_paths(text, ROOT) == ["data/none.md", "utils/faqs.py", "attic.csv"]
    text = (
        "`python -m utils.artifact check`, `python -m utils.colours`, `utils.files`, "
        "`utils.files.write`, `utils.files.write_text(…)`, `test_nothing`, "
        "`test_house`, `tests/benchmarks/bench_course.py --fresh --slowly`"
    )
    assert missing_names(text) == [
        "python -m utils.artifact",
        "python -m utils.colours",
        "utils.artifact",
        "utils.files.write",
        "test_nothing",
        "bench_course.py --slowly",
    ]


@pytest.mark.parametrize(
    ("folder", "card"),
    [
        ("data", "data/README.md"),
        ("data/lab_model", "data/lab_model/README.md"),
        ("data/aws", "data/aws/README.md"),
        ("notebooks/figures", "notebooks/figures/README.md"),
        ("tests/benchmarks", "tests/benchmarks/README.md"),
    ],
)
def test_the_card_of_a_folder_names_each_file(folder: str, card: str) -> None:
    """And says where it comes from: whoever adds a file adds its line."""
    text = (ROOT / card).read_text("utf-8")
    for path in (ROOT / folder).iterdir():
        name = re.sub(r"_\d\d\.svg$", "_NN.svg", path.name)
        if name != "README.md" and not name.startswith("."):
            assert f"`{name}" in text, f"{card} says nothing of {path.name}"
