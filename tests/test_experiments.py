"""The rules of the lessons reach experiments too: tried on a small one."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import nbformat
import pytest
import test_notebooks as rules

from support import shown
from support.wrong_answers import module_of
from utils import run

TITLE = """\
# Rates, compared

At the end you hold a curve. This goes on from [lesson 04](../04_tuning.ipynb).

- compare rates;
- read a curve;
- name the best one.

| | |
|:--|:--|
| **needs** | a processor |
| **time** | a moment |
| **cost** | nothing |
| **reads → writes** | nothing |

![a map](../figures/map.svg)"""
EXERCISE = """\
from utils.exercises.frame import Wrong, exercise


@exercise("the best rate")
def check_best(answer):
    if answer == 1:
        raise Wrong("Too small a rate: try a larger one.")
    if answer != 2:
        raise Wrong("Too large a rate: try a smaller one.")
    return "Two it is."


answer = ...  # a number
check_best(answer)"""
SOLUTION = """\
<details><summary>Solution</summary>

```python
answer = 2
```

</details>"""
WRONG = {"check_best": [("answer = 1", "Too small"), ("answer = 3", "Too large")]}
CELLS = [
    ("title", TITLE),
    (
        "configuration",
        "from utils.course import claim, key_figure, preflight, run_config, set_seed\n"
        "\nset_seed()\nconfig = run_config()\nconfig",
    ),
    ("preflight-why", "A check comes first."),
    ("preflight", "preflight(config)"),
    ("rates-why", "## 1 · Rates\n\nTwo rates are compared."),
    ("rates", "from utils.display import with_interval\n\nwith_interval\n2 > 1"),
    ("claim-why", "This is claimed:"),
    ("claim", 'claim("Two is more than one.", 2 > 1)\nkey_figure("best", "2")'),
    ("best-why", "Which one is best?"),
    ("best", EXERCISE),
    ("best-solution", SOLUTION),
    ("other-why", "And once more, which one is best?"),
    ("other", "answer = ...\ncheck_best(answer)"),
    ("other-solution", SOLUTION),
    ("ending", "## You can now\n\n- compare rates."),
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small experiment, executed, beside the folder of its lesson and figures."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "figures").mkdir()
    (folder / "figures" / "map.svg").touch()
    (folder / "experiments").mkdir()
    nbformat.write(nbformat.v4.new_notebook(), folder / "04_tuning.ipynb")
    notebook = nbformat.v4.new_notebook()
    for name, source in CELLS:
        prose = name in ("title", "ending") or name.endswith(("-why", "-solution"))
        make = nbformat.v4.new_markdown_cell if prose else nbformat.v4.new_code_cell
        notebook.cells.append(make(source, id=name))
    path = folder / "experiments" / "04_rates.ipynb"
    nbformat.write(notebook, path)
    executed = asyncio.run(run.execute(path, os.environ))
    path.write_text(run.as_text(run.clean(executed)), encoding="utf-8")
    return path


RULES = [
    rules.test_name_format_and_ids,
    rules.test_metadata_names_no_machine,
    rules.test_opening,
    rules.test_ending,
    rules.test_code_between_prose,
    rules.test_code_is_short_and_plain,
    rules.test_code_is_the_same_for_local_and_real_aws,
    rules.test_every_cell_was_executed_in_order,
    rules.test_outputs_are_clean,
    rules.test_few_outputs_are_ignored,
    rules.test_tags_are_known_and_name_claims_of_their_cell,
    rules.test_claims_and_key_figure,
    rules.test_exercises_have_solution_and_planted_mistakes,
    rules.test_prose_names_only_notebooks_that_exist,
]


@pytest.fixture
def planted(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment, with its planted mistakes and its lesson known to the rules."""
    monkeypatch.setattr(rules, "wrong_answers", lambda path: WRONG)
    known = [experiment.parent.parent / "04_tuning.ipynb", experiment]
    monkeypatch.setattr(rules, "NOTEBOOKS", known)
    return experiment


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_experiment_keeps_the_rules(rule, planted: Path) -> None:
    rule(planted)


def test_an_experiment_without_a_way_back_is_noticed(planted: Path) -> None:
    text = planted.read_text(encoding="utf-8")
    try:
        planted.write_text(text.replace("(../04_tuning.ipynb)", "(x)"), "utf-8")
        rules.read.cache_clear()
        with pytest.raises(AssertionError, match="no way back"):
            rules.test_opening(planted)
    finally:
        planted.write_text(text, encoding="utf-8")
        rules.read.cache_clear()


def test_its_exercises_are_proven_by_strict_nbval(planted: Path, tmp_path) -> None:
    # Both exercises have the same check: it is planted for the first.
    rules.test_strict_nbval_and_exercises(planted, tmp_path)
    target = tmp_path / "experiments" / "04_rates.ipynb"
    notebook = json.loads(target.read_text(encoding="utf-8"))
    assert sum(cell["id"].startswith("proof-") for cell in notebook["cells"]) == 2


def test_its_mistakes_have_a_file_with_its_whole_name(experiment: Path) -> None:
    assert module_of(experiment) == "experiment_04_rates"
    assert module_of(Path("notebooks/04_tuning.ipynb")) == "lesson_04"


def test_a_docstring_may_name_an_experiment(experiment: Path) -> None:
    found = shown.sentences(experiment.parent.parent)
    sentence = "First used in experiment 04_rates, section 1."
    assert found["utils.display:with_interval"] == sentence
    assert shown.SENTENCE.fullmatch(sentence)
    before = found["utils.course:run_config"]
    assert before == "First used in experiment 04_rates, before section 1."
    assert shown.SENTENCE.fullmatch(before)
    # What a lesson uses is the lesson's.
    assert shown.sentences()["utils.course:run_config"].startswith("First used in less")
