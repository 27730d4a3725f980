"""The newest versions: resolved, installed and tried in a folder of their own.

pip, uv and the notebooks are played; which commands are called, where and with what, is
compared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from utils.classroom import __main__ as command
from utils.classroom import newest
from utils.classroom.newest import (
    Done,
    NewestError,
    Outcome,
    Trial,
    at_least,
    last_lines,
    notebook_names,
    run_command,
    try_newest,
    with_pins,
)
from utils.course import ROOT

PINS = """\
# Models
torch==2.13.0
moto[s3,sts]==5.2.5
Typing_Thing==1.0
setuptools==81.0.0
awslambdaric==4.2.2; sys_platform == "linux"
-e .
"""


class World:
    """Plays pip, uv and the notebooks, and notes what was called."""

    def __init__(
        self, newest_versions: dict[str, str], fails: Sequence[str] = ()
    ) -> None:
        self.versions, self.fails = newest_versions, fails
        self.calls: list[tuple[list[str], Path, dict[str, str]]] = []
        self.uv_fails = self.settings = ""

    def run(
        self, called: Sequence[str], folder: Path, environ: Mapping[str, str]
    ) -> Done:
        self.calls.append((list(called), folder, dict(environ)))
        if "venv" in called:
            (Path(called[-1]) / "bin").mkdir(parents=True)
        if "config" in called:
            return Done(0, self.settings)
        if "compile" in called:
            if self.uv_fails:
                return Done(1, self.uv_fails)
            lines = [f"{name}=={version}" for name, version in self.versions.items()]
            found = Path(called[called.index("--output-file") + 1])
            found.write_text("\n".join(["-e .", *lines]))
        if "utils.run" in called and called[-1] in self.fails:
            return Done(1, "a table\n\n02, cell 3 failed.\n  AttributeError: gone\n")
        return Done(0, "")

    def words(self, word: str) -> list[list[str]]:
        return [called for called, *_ in self.calls if word in called]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A course with two lessons and an experiment."""
    root = tmp_path / "course"
    (root / "notebooks" / "experiments").mkdir(parents=True)
    for name in ("01_first", "02_second", "experiments/01_deep"):
        (root / "notebooks" / f"{name}.ipynb").write_text("{}")
    (root / "utils").mkdir()
    (root / "utils" / "__init__.py").touch()
    (root / "requirements.txt").write_text(PINS)
    (root / "README.md").touch()
    return root


VERSIONS = {
    "torch": "2.14.0",
    "moto": "5.2.5",
    "typing-thing": "1.1",
    "setuptools": "81.0.0",
    "awslambdaric": "4.3",
    "something-else": "3",
}


def test_pins_go_and_come_back_newer() -> None:
    assert at_least(PINS).splitlines() == [
        "# Models",
        "torch>=2.13.0",
        "moto[s3,sts]>=5.2.5",
        "Typing_Thing>=1.0",
        "setuptools==81.0.0",
        'awslambdaric>=4.2.2; sys_platform == "linux"',
        "-e .",
    ]
    newer = with_pins(PINS, VERSIONS)
    assert "torch==2.14.0" in newer and "Typing_Thing==1.1" in newer
    assert 'awslambdaric==4.3; sys_platform == "linux"' in newer
    assert with_pins(PINS, {}) == PINS


def test_a_trial_resolves_installs_and_runs_in_its_own_folder(
    tmp_path: Path, root: Path, monkeypatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/this/course")
    monkeypatch.setenv("PIP_USER", "1")
    world, said = World(VERSIONS, fails=["02_second"]), []
    folder = tmp_path / "newest"
    folder.mkdir()
    (folder / "left").touch()
    trial = Trial(folder, root, world.run, ["--extra-index-url", "x"], said.append)
    changes, outcomes = try_newest(trial)
    assert not (folder / "left").exists(), "an earlier trial is in the way"
    assert changes == [
        "torch 2.13.0 → 2.14.0",
        "Typing_Thing 1.0 → 1.1",
        "awslambdaric 4.2.2 → 4.3",
    ]
    # One that fails does not end it, and says why.
    assert [str(one) for one in outcomes] == [
        "[OK]   01_first",
        "[FAIL] 02_second: a table / 02, cell 3 failed. / AttributeError: gone",
        "[OK]   experiments/01_deep",
    ]
    assert str(outcomes[1]) in said
    python = str(folder / "environment" / "bin" / "python")
    made, tool, asked, found, installed, *runs = [one for one, *_ in world.calls]
    assert made == [sys.executable, "-m", "venv", str(folder / "environment")]
    assert tool[:4] == installed[:4] == [python, "-m", "pip", "install"]
    assert "uv" in tool and "requirements.txt" not in tool
    assert asked == [python, "-m", "pip", "config", "list"]
    assert found[:3] == [str(folder / "environment/bin/uv"), "pip", "compile"]
    assert found[found.index("--python") + 1] == python
    assert found[-3:] == ["--extra-index-url", "x", "requirements.txt"]
    assert installed[-2:] == ["--extra-index-url", "x"]
    pins = str(folder / "resolved.txt")
    assert " ".join(installed).count(f"-c {pins} -r requirements.txt") == 1
    # All that is installed has a version, so that pip need not search.
    assert Path(pins).read_text() == "".join(
        f"{name}=={version}\n" for name, version in VERSIONS.items()
    )
    assert [run[0] for run in runs] == [python] * 3
    for called, where, environ in world.calls[1:]:
        assert where == folder / "course", called
        assert "PYTHONPATH" not in environ and environ["PIP_USER"] == "0"
    assert world.calls[-1][2]["COURSE_BUILD"] == str(folder / "build")
    # The copy has the newer pins, which its preflight compares; ours are as they were.
    assert "torch==2.14.0" in (folder / "course" / "requirements.txt").read_text()
    assert (root / "requirements.txt").read_text() == PINS
    assert (folder / "environment" / "course_models").is_dir()


def test_resolving_alone_installs_and_runs_nothing(tmp_path: Path, root: Path) -> None:
    world = World({})
    changes, outcomes = try_newest(
        Trial(tmp_path / "newest", root, world.run), resolve_only=True
    )
    assert (changes, outcomes) == ([], [])
    assert [called[-1] for called in world.words("install")] == [
        "--disable-pip-version-check"
    ]
    assert "uv" in world.words("install")[0] and not world.words("utils.run")


def test_only_what_is_wanted_is_run(tmp_path: Path, root: Path) -> None:
    world = World({})
    trial = Trial(tmp_path / "newest", root, world.run, say=lambda _: None)
    assert try_newest(trial, ["02"])[1] == [Outcome("02")]
    assert [called[-1] for called in world.words("utils.run")] == ["02"]


def test_a_notebook_that_is_not_there_is_noticed_at_once(
    tmp_path: Path, root: Path
) -> None:
    world = World({})
    with pytest.raises(NewestError, match="There is no notebook 77"):
        try_newest(Trial(tmp_path / "newest", root, world.run), ["02", "77"])
    assert not world.words("pip")


def test_uv_looks_for_packages_where_pip_does(tmp_path: Path, root: Path) -> None:
    world = World({})
    world.settings = (
        ":env:.find-links='/wheels'\n"
        "global.index-url='https://mirror/simple'\n"
        "install.extra-index-url='\\nhttps://a\\nhttps://b'\n"
        "global.cert='/etc/ca.crt'\nglobal.proxy=\"http://it's:1\"\n"
        "install.user='true'\n"
    )
    try_newest(Trial(tmp_path / "newest", root, world.run), resolve_only=True)
    called, _, environ = next(one for one in world.calls if "compile" in one[0])
    given = called[called.index("unsafe-best-match") + 1 : -1]
    assert given == [
        *("--find-links", "/wheels", "--default-index", "https://mirror/simple"),
        *("--index", "https://a", "--index", "https://b"),
    ]
    assert environ["SSL_CERT_FILE"] == "/etc/ca.crt"
    assert environ["HTTPS_PROXY"] == "http://it's:1"


def test_pips_own_list_of_settings_is_read(tmp_path: Path, root: Path) -> None:
    """As the pip of this environment prints it."""
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://m/s\nfind-links =\n  /a\n  /b\n")

    def run(called: Sequence[str], folder: Path, environ: Mapping[str, str]) -> Done:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
        if "config" in called:
            return run_command([sys.executable, *called[1:]], folder, given | kept)
        return world.run(called, folder, environ)

    given = {"PIP_CONFIG_FILE": str(config)}
    world = World({})
    try_newest(Trial(tmp_path / "newest", root, run), resolve_only=True)
    (called,) = world.words("compile")
    assert " ".join(called).count("--default-index https://m/s ") == 1
    assert " ".join(called).count("--find-links /a --find-links /b") == 1


def test_versions_that_do_not_fit_together_end_it_with_uvs_reason(
    tmp_path: Path, root: Path
) -> None:
    world = World({})
    world.uv_fails = "× No solution found: a needs b<2"
    with pytest.raises(NewestError, match="No solution found: a needs b<2"):
        try_newest(Trial(tmp_path / "newest", root, world.run))
    assert not world.words("utils.run")


def test_the_command_reports_and_returns_1_if_a_notebook_fails(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    monkeypatch.setenv("PIP_ARGS", "--index-url 'https://a b'")
    seen = {}

    def tried(trial: Trial, wanted: list[str], resolve_only: bool) -> tuple:
        seen["trial"] = trial
        error = "gone" if "02" in wanted else ""
        outcomes = [] if resolve_only else [Outcome("01"), Outcome("02", error)]
        return ["torch 1 → 2"], outcomes

    monkeypatch.setattr(newest, "try_newest", tried)
    assert command.main(["newest", "--resolve-only"]) == 0
    assert capsys.readouterr().out == "torch 1 → 2\n"
    assert seen["trial"].folder == tmp_path / "newest"
    assert seen["trial"].pip_arguments == ["--index-url", "https://a b"]
    assert command.main(["newest"]) == 0
    assert "2 of 2 notebooks ran." in capsys.readouterr().out
    assert command.main(["newest", "02"]) == 1
    out = capsys.readouterr().out
    assert "[FAIL] 02: gone" in out and "1 of 2 notebooks ran." in out


def test_a_command_is_run_with_what_it_is_given(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['A']); sys.exit('why')"
    environ = {**os.environ, "A": "b"}
    done = run_command([sys.executable, "-c", code], tmp_path, environ)
    assert done == Done(1, f"{tmp_path} b\nwhy\n")
    assert last_lines("\n a \n\n b\n c\n d\n") == "b / c / d"
    assert last_lines("") == "no word of why"


def test_the_names_are_those_that_run_takes() -> None:
    from utils.run import NOTEBOOKS, find_notebooks, name_of

    names = notebook_names(ROOT)
    assert names == [name_of(path) for path in find_notebooks(NOTEBOOKS)]
    assert len(find_notebooks(NOTEBOOKS, names)) == len(names)
