"""utils.course: configuration, preflight, claims, key figures, road map."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch

from utils import course
from utils.course import (
    FAQS_DATA,
    FETCHED_MODELS,
    LAB_DATA,
    ROOT,
    ClaimError,
    ConfigError,
    PreflightError,
    claim,
    key_figure,
    portable_name,
    preflight,
    run_config,
    set_seed,
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """Collect what is displayed: text and metadata."""
    calls: list[tuple[str, dict]] = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda line, metadata: calls.append((repr(line), metadata)),
    )
    return calls


def test_defaults_are_offline_and_embedded() -> None:
    config = run_config({})
    assert (config.model, config.aws) == ("lab", "local")
    assert config.data == LAB_DATA
    assert config.build == ROOT / "build"
    assert config.embedded


def test_a_lesson_may_have_another_default_with_its_own_data() -> None:
    config = run_config({}, model="smollm2")
    assert (config.model, config.data) == ("smollm2", FAQS_DATA)
    chosen = run_config({"COURSE_MODEL": "lab"}, model="smollm2")
    assert (chosen.model, chosen.data) == ("lab", LAB_DATA)


def test_empty_variables_count_as_not_set() -> None:
    names = ("COURSE_MODEL", "COURSE_DATA", "COURSE_AWS", "COURSE_BUILD")
    assert run_config(dict.fromkeys(names, " ")) == run_config({})


def test_names_do_not_depend_on_where_the_installation_lies() -> None:
    assert portable_name(FETCHED_MODELS / "smollm2") == "smollm2"
    assert portable_name(ROOT / "data" / "lab_model") == "data/lab_model"


def test_other_model_or_data_is_not_embedded(tmp_path: Path) -> None:
    data = tmp_path / "mine.csv"
    data.write_text("instruction,response\n")
    assert not run_config({"COURSE_MODEL": "small"}).embedded
    assert not run_config({"COURSE_DATA": str(data)}).embedded
    assert run_config({"COURSE_DATA": str(LAB_DATA)}).embedded


def test_model_may_be_a_hub_id_or_a_folder(tmp_path: Path) -> None:
    hub = "EleutherAI/pythia-70m"
    assert run_config({"COURSE_MODEL": hub}).model == hub
    assert run_config({"COURSE_MODEL": "gpt2"}).model == "gpt2"
    assert run_config({"COURSE_MODEL": str(tmp_path)}).model == str(tmp_path)


def test_relative_paths_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "here.csv"
    here.write_text("instruction,response\n")
    assert run_config({"COURSE_DATA": "here.csv"}).data == here
    assert run_config({"COURSE_DATA": "requirements.txt"}).data == (
        ROOT / "requirements.txt"
    )
    assert run_config({"COURSE_BUILD": "other"}).build == ROOT / "other"


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("COURSE_MODEL", "Lab", "did you mean 'lab'"),
        ("COURSE_MODEL", "doly", "did you mean 'dolly'"),
        ("COURSE_MODEL", "minilm", "answers nothing. Give one of lab, smollm2"),
        ("COURSE_MODEL", "MiniLM", "is an encoder"),
        ("COURSE_MODEL", "smollm", "did you mean 'smollm2'"),
        ("COURSE_MODEL", "./no-such-folder", "no such folder"),
        ("COURSE_MODEL", "/no/such/folder", "no such folder"),
        ("COURSE_MODEL", "two words", "no such folder"),
        ("COURSE_DATA", "no-such.csv", "CSV"),
        ("COURSE_DATA", "tests", "no such file"),
        ("COURSE_AWS", "Real", "'local'"),
        ("COURSE_BUILD", "Makefile", "which is a file"),
        ("COURSE_BUILD", ".", "holds the course itself"),
        ("COURSE_BUILD", "/", "holds the course itself"),
    ],
)
def test_bad_values_name_variable_value_and_remedy(
    variable: str, value: str, remedy: str
) -> None:
    with pytest.raises(ValueError) as caught:
        run_config({variable: value})
    assert isinstance(caught.value, ConfigError)
    message = str(caught.value)
    assert variable in message
    assert repr(value) in message
    assert remedy in message


def test_config_shows_no_absolute_path(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    data = tmp_path / "mine.csv"
    data.write_text("instruction,response\n")
    config = run_config(
        {
            "COURSE_MODEL": str(model),
            "COURSE_DATA": str(data),
            "COURSE_BUILD": str(tmp_path / "build"),
        }
    )
    for text in (str(config), repr(config), config._repr_markdown_()):
        assert "\n" not in text
        assert str(tmp_path) not in text
        assert "mine.csv" in text


def test_preflight_names_each_missing_file_with_its_remedy(tmp_path: Path) -> None:
    config = run_config({"COURSE_BUILD": str(tmp_path), "COURSE_DATA": __file__})
    (tmp_path / "dataset").mkdir()
    with pytest.raises(PreflightError) as caught:
        preflight(
            config,
            files={
                "build/dataset": "run 03_dataset_templating.ipynb",
                "build/adapter": "run 04_lora_training.ipynb",
                "data/none": "run nothing",
            },
        )
    assert str(caught.value).splitlines() == [
        "build/adapter is missing: run 04_lora_training.ipynb, or `make run`.",
        "data/none is missing: run nothing, or `make run`.",
    ]


def test_preflight_shows_what_it_found(tmp_path: Path) -> None:
    config = run_config({"COURSE_BUILD": str(tmp_path), "COURSE_DATA": __file__})
    (tmp_path / "adapter").mkdir()
    found = preflight(config, files={"build/adapter": "run 04"}, packages=["torch"])
    assert str(found) == "✓ ready: build/adapter, torch"


def test_preflight_compares_packages_with_their_pins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = run_config({"COURSE_DATA": __file__})
    versions = {"torch": "2.0.0+cpu", "pandas": course._pinned_version("pandas")}
    monkeypatch.setattr(
        course.importlib.metadata, "version", lambda name: versions[name]
    )
    with pytest.raises(PreflightError) as caught:
        preflight(config, packages=["torch", "pandas"])
    pin = course._pinned_version("torch")
    assert f"torch is 2.0.0+cpu, but the course needs {pin}" in str(caught.value)
    assert "pandas" not in str(caught.value)


def test_preflight_says_what_to_do_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PreflightError, match="unset COURSE_MODEL"):
        preflight(run_config({"COURSE_DATA": __file__}), gpu_gigabytes=16)


def test_preflight_reports_missing_data(tmp_path: Path) -> None:
    data = tmp_path / "gone.csv"
    data.touch()
    config = run_config({"COURSE_DATA": str(data)})
    data.unlink()
    with pytest.raises(PreflightError, match="gone.csv is missing"):
        preflight(config)


def test_claim_that_holds_is_shown(shown: list) -> None:
    verdict = claim("three examples beat none", True, run_config({}))
    assert verdict
    assert shown == [("✓ three examples beat none", {})]


def test_claim_takes_numpy_verdicts_and_refuses_others(shown: list) -> None:
    assert claim("larger", numpy.float64(2) > 1, run_config({}))
    with pytest.raises(TypeError, match="larger"):
        claim("larger", "yes", run_config({}))
    with pytest.raises(TypeError, match="larger"):
        claim("larger", None, run_config({}))


def test_failing_claim_raises_on_the_embedded_model(shown: list) -> None:
    with pytest.raises(ClaimError, match="three examples beat none"):
        claim("three examples beat none", False, run_config({}))
    assert shown == []


NOT_HERE = (
    "✗ did not hold here (it is promised for the course's own model and file): "
    "three examples beat none"
)


def test_failing_claim_raises_where_no_model_was_chosen(shown, monkeypatch) -> None:
    """A lesson with a model of its own promises as well."""
    with pytest.raises(ClaimError, match="with the course's defaults"):
        claim("three examples beat none", False)
    monkeypatch.setenv("COURSE_MODEL", "lab")
    assert not claim("three examples beat none", False)
    assert shown[0][0] == NOT_HERE


def test_failing_claim_goes_on_elsewhere(shown: list) -> None:
    elsewhere = run_config({"COURSE_MODEL": "small"})
    assert not claim("three examples beat none", False, elsewhere)
    assert shown[0][0] == NOT_HERE


def test_expected_errors_are_shown_without_a_stack_trace() -> None:
    assert ClaimError("too few")._render_traceback_() == ["ClaimError: too few"]


def test_key_figure_travels_in_the_metadata(shown: list) -> None:
    key_figure("right", "93%")
    assert shown == [
        ("right: 93%", {course.KEY_FIGURE: {"label": "right", "value": "93%"}})
    ]


def test_seed_repeats_all_three_generators() -> None:
    def draw() -> tuple:
        return random.random(), numpy.random.random(), torch.rand(1).item()

    set_seed()
    first = draw()
    assert draw() != first
    set_seed()
    assert draw() == first
    set_seed(7)
    assert draw() != first


def test_data_may_be_a_data_set_of_the_hub(tmp_path: Path) -> None:
    config = run_config({"COURSE_DATA": "owner/questions"})
    assert config.data == "owner/questions"
    assert "data owner/questions" in str(config)
    assert not config.embedded
    assert str(preflight(config)) == "✓ ready"
    assert run_config({"COURSE_DATA": str(config.data)}) == config
    with_configuration = run_config({"COURSE_DATA": "openai/gsm8k:main"})
    assert with_configuration.data == "openai/gsm8k:main"


@pytest.mark.parametrize("value", ["data/none.jsonl", "none.xlsx", "a/b/c", "x/y.csv"])
def test_a_missing_file_is_no_data_set_of_the_hub(value: str) -> None:
    with pytest.raises(ConfigError, match="no such file.*Parquet or Excel") as error:
        run_config({"COURSE_DATA": value})
    # It says where it has looked.
    assert str(Path.cwd()) in str(error.value) and str(ROOT) in str(error.value)


def test_data_may_be_the_folder_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    assert run_config({"COURSE_DATA": str(tmp_path)}).data == tmp_path
