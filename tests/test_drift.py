"""The course and what is installed agree: calls, pins, and which tests are run.

Every call in the notebooks' cells fits the installed version of what it calls, as far
as `support.drift` can know without running it. Every pin of a file is the one of
requirements.txt. Every test file belongs to `make test`. About 20 seconds.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from support.drift import Report, check_cells
from utils.course import ROOT
from utils.deployment.image import IMAGE_VERSIONS
from utils.jobs.source import container_requirements
from utils.run import NOTEBOOKS, find_notebooks, name_of

# --- calls ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    found = {}
    for path in find_notebooks(NOTEBOOKS):
        cells = nbformat.read(path, as_version=4).cells
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        found[name_of(path)] = check_cells(code, name_of(path))
    return found


def test_each_call_of_the_notebooks_exists_with_these_parameters(reports) -> None:
    assert not [fault for report in reports.values() for fault in report.faults]


def test_enough_calls_are_compared_in_each_notebook(reports) -> None:
    """Or the test above would say nothing: whoever breaks it makes it blind."""
    for name, report in reports.items():
        assert len(report.compared) >= 40, name
    compared = {text for report in reports.values() for text in report.compared}
    # What practitioners type: models, training, the SDK, and AWS itself.
    for call in (
        "AutoModelForCausalLM.from_pretrained",
        "AutoTokenizer.from_pretrained",
        "LoraConfig",
        "TrainingArguments",
        "ModelTrainer",
        "httpx.Client",
        "sagemaker.describe_endpoint",
    ):
        assert call in compared, call


# Code with one call that what is installed does not know → what is said of it.
PLANTED = {
    "import torch\ntorch.no_such_function(1)": "torch has no no_such_function",
    "from transformers import AutoNothing": "transformers has no AutoNothing",
    "import no_such_module": "there is no module no_such_module",
    "from peft import LoraConfig\nLoraConfig(rank=4)": "unexpected keyword argument",
    "from transformers import TrainingArguments as T\nT('x', bf17=True)": "'bf17'",
    "import pandas as pd\nrows = pd.DataFrame()\nrows.merge(rows, hows='x')": "'hows'",
    "import torch\ntorch.zeros(3, dtipe=None)": "knows no dtipe",
    (
        "from transformers import AutoModelForCausalLM as A\n"
        "A.from_pretrained('x', dtypo=None)"
    ): "nobody reads dtypo",
    (
        "from transformers import AutoModelForCausalLM as A\n"
        "model = A.from_pretrained('x')\nmodel.generate(max_new_tokns=3)"
    ): "nobody reads max_new_tokns",
    "from utils.course import claim\nclaim('it holds')": "missing a required argument",
    "from utils.course import run_config\nrun_config().modell": "no modell",
    "from pathlib import Path\nPath('x').read_txt()": "Path has no read_txt",
    "import boto3\nc = boto3.client('sagemaker')\nc.create_endpoint(EndpointNam='x')": (
        "there is no EndpointNam"
    ),
    "import boto3\nc = boto3.client('s3')\nc.put_object(Bucket='x')": "needs Key",
    "import boto3\nc = boto3.client('s3')\nc.put_everything()": "no such method",
    # Where it stands does not matter.
    "import json\ndef f(x):\n    return [json.dumps(y, indnt=1) for y in x]": (
        # json.dumps hands on what it does not know to an encoder.
        ""
    ),
    "import math\nif True:\n    f = lambda x: math.sqrtt(x)": "math has no sqrtt",
    "import math\nwith open('x') as f:\n    print(f'{math.cosh(1, 2, 3)}')": "too many",
    "import math\nfor x in range(3):\n    x = {x: math.flor(x)}": "math has no flor",
}


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_call_is_found(code: str) -> None:
    faults = check_cells([code]).faults
    if PLANTED[code]:
        assert len(faults) == 1 and PLANTED[code] in faults[0], faults
    else:
        assert faults == []


def test_what_cannot_be_known_is_not_called_wrong() -> None:
    cells = [
        "import math, json\nfrom pathlib import Path",
        "def ask(math, path):\n    path = path or 1\n    return math.anything(path.x)",
        "path = Path('x') if ask(1, 2) else 3\npath.anything()",
        "if ask(1, 2):\n    json = 5\njson.anything(x=1)",
        "for math in [1]:\n    pass\nmath.anything()",
        "options = {'indent': 2}\nPath('x').write_text(*['y'], **options)",
        "try:\n    n = Path('x')\nexcept OSError:\n    n = 4\nn.anything",
    ]
    assert check_cells(cells).faults == []


# --- pins -----------------------------------------------------------------------------

PIN = re.compile(
    r"(?<![\w./-])(?P<name>[A-Za-z][\w.-]*)(?:\[[\w,]+\])?==(?P<version>\d[\w.]*)"
)
KINDS = {".md", ".txt", ".toml", ".json", ".yaml", ".yml", ".py", ".ipynb", ".sh"}


def pins() -> dict[str, str]:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return {normalised(found["name"]): found["version"] for found in PIN.finditer(text)}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def prose_and_code(path: Path) -> str:
    """A file's text; of a notebook, its cells without outputs."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells)


def shipped_files() -> list[Path]:
    """What learners and containers get; tests plant pins of their own."""
    folders = [ROOT / name for name in ("utils", "data", "notebooks", ".ci")]
    paths = [path for folder in folders for path in folder.rglob("*")]
    paths += [path for path in ROOT.iterdir() if path.is_file()]
    hidden = {"__pycache__", ".ipynb_checkpoints"}
    return [
        path
        for path in sorted(paths)
        if path.is_file() and path.suffix in KINDS and not hidden & set(path.parts)
    ]


def disagreements(name: str, text: str, wanted: dict[str, str]) -> list[str]:
    return [
        f"{name}: {found[0]}, and requirements.txt has {wanted[package]}"
        for found in PIN.finditer(text)
        if (package := normalised(found["name"])) in wanted
        and found["version"].rstrip(".") != wanted[package]
    ]


def test_pins_in_all_files_agree() -> None:
    wanted = pins()
    assert len(wanted) >= 70
    found = []
    for path in shipped_files():
        name = path.relative_to(ROOT).as_posix()
        found += disagreements(name, prose_and_code(path), wanted)
    assert not found
    # The function on Lambda pins what the course also has, and more.
    service = (ROOT / "utils/web/service/requirements.txt").read_text("utf-8")
    assert len(set(wanted) & {normalised(one["name"]) for one in PIN.finditer(service)})
    planted = disagreements("x", "`pip install peft==0.1` and Torch==9.", wanted)
    assert [one.split(",")[0] for one in planted] == ["x: peft==0.1", "x: Torch==9."]


def test_a_training_job_is_given_the_pinned_versions() -> None:
    wanted = pins()
    lines = container_requirements()
    assert len(lines) >= 5
    for line in lines:
        pin = Requirement(line)
        assert str(pin.specifier) == f"=={wanted[normalised(pin.name)]}"


def test_the_serving_image_is_the_one_that_the_notebook_names() -> None:
    """Notebook, checks and docstring name one image; its torch is older than ours."""
    module = (ROOT / "utils/deployment/image.py").read_text("utf-8")
    image = re.search(r"djl-inference:(?P<version>[\d.]+)-lmi[\d.]+-cu\d+", module)
    notebook = prose_and_code(next(NOTEBOOKS.glob("06_*.ipynb")))
    assert set(re.findall(r'version="(\d+\.\d+\.\d+)"', notebook)) == {image["version"]}
    named = set()
    for path in shipped_files():
        named |= set(re.findall(r"djl-inference:([\d.]+)-lmi", prose_and_code(path)))
    assert named == {image["version"]}
    wanted = pins()
    for name, version in IMAGE_VERSIONS.items():
        assert wanted[name] in SpecifierSet(f">={version}"), f"{name} is older here"


def test_pythons_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    supported = SpecifierSet(project["project"]["requires-python"])
    versions = [f"3.{minor}" for minor in range(9, 16) if f"3.{minor}" in supported]
    assert versions == ["3.11", "3.12"]
    assert project["tool"]["ruff"]["target-version"] == "py311"
    from utils.classroom import hosted, machine_check

    ours = tuple((3, int(version[2:])) for version in versions)
    assert ours == machine_check.VERSIONS == hosted.VERSIONS
    for name in ("README.md", "Makefile", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text("utf-8")
        assert set(re.findall(r"3\.1\d\b", text)) <= {*versions}, name


# --- tests ----------------------------------------------------------------------------


def named_tests(code: str) -> tuple[list[str], list[str]]:
    """Return the tests of a module, and those of them that `make test` leaves out."""
    every, slow = [], []
    tree = ast.parse(code)
    all_slow = any(
        isinstance(node, ast.Assign)
        and "pytestmark" in ast.unparse(node.targets[0])
        and ".slow" in ast.unparse(node.value)
        for node in tree.body
    )
    for node in ast.walk(tree):
        is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if is_test:
            every.append(node.name)
            marks = [ast.unparse(one) for one in node.decorator_list]
            if all_slow or "pytest.mark.slow" in marks:
                slow.append(node.name)
    return every, slow


def test_every_test_file_is_run_by_make_test() -> None:
    """pytest takes what is named test_….py below `testpaths`, and marks keep out."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    pytest_settings = settings["tool"]["pytest"]["ini_options"]
    assert pytest_settings["testpaths"] == ["tests"]
    assert "ignore" not in pytest_settings["addopts"].replace("norecurse", "")
    recipe = re.search(
        r"^test: .*\n\t@?(.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    assert recipe[1].split("pytest", 1)[1].split() == [
        *("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    ], "a path or a choice would leave files out"
    for path in (ROOT / "tests").rglob("*.py"):
        every, slow = named_tests(path.read_text("utf-8"))
        name = path.relative_to(ROOT).as_posix()
        if path.name.startswith("test_"):
            assert path.parent == ROOT / "tests", f"{name}: put it into tests/"
            assert every, f"{name} has no test"
            assert set(every) - set(slow), f"{name}: make test runs nothing of it"
            assert len(set(every)) == len(every), f"{name}: two tests have one name"
        else:
            assert not every, f"{name} has tests, and pytest does not look there"


def test_files_and_tests_that_nobody_runs_are_noticed() -> None:
    code = "@pytest.mark.slow\ndef test_a(): ...\ndef test_b(): ...\n"
    assert named_tests(code) == (["test_a", "test_b"], ["test_a"])
    assert named_tests("pytestmark = pytest.mark.slow\n" + code)[1] == [
        "test_a",
        "test_b",
    ]
    assert named_tests("def helper(): ...") == ([], [])
