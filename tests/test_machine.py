"""What this machine offers: how threads wait, and which precision is faster.

And that what libraries say on some machines only is kept from the notebooks.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
import torch

from support.machines import T4
from utils import machine, models
from utils.course import ROOT, ConfigError, run_config
from utils.machine import (
    LAB_SHAPES,
    LONG_SPIN,
    MACHINE_LINES,
    MARGIN,
    MOST_OPERATIONS,
    ROUNDS,
    SHORT_SPIN,
    TOKENS,
    Machine,
    Race,
    cpu_has_bf16,
    fastest_cpu_dtype,
    openmp_environment,
    openmp_setting,
    others_are_busy,
    precision_race,
)
from utils.models import MODELS, load_model, model_shapes, this_machine
from utils.run import find_notebooks

# --- threads ---


def test_the_start_decides_unless_the_user_says_otherwise() -> None:
    assert openmp_environment({}, busy=False) == LONG_SPIN
    assert openmp_environment({}, busy=True) == SHORT_SPIN
    kept = openmp_environment({"GOMP_SPINCOUNT": "7"}, busy=True)
    assert kept == {"KMP_BLOCKTIME": "0"}
    assert openmp_environment({"OMP_WAIT_POLICY": "active"}, busy=True) == {}


def test_what_is_inherited_is_not_looked_for_again(monkeypatch) -> None:
    monkeypatch.setattr(machine, "others_are_busy", lambda environ: 1 / 0)
    assert openmp_environment(SHORT_SPIN) == {}


@pytest.mark.parametrize(
    "loads, cores, environ, busy",
    [
        ([3, 5], 2, {}, False),
        ([100, 4], 2, {}, True),
        ([50, 50], 2, {}, True),
        ([100, 0], 2, {"OMP_NUM_THREADS": "1"}, False),
        ([100, 100], 2, {"OMP_NUM_THREADS": "1"}, True),
        ([100, 0, 0, 0], 2, {}, False),  # two threads to a core: one is enough
        ([100, 100, 90, 0], 2, {}, True),
        ([100], None, {}, True),
    ],
)
def test_busy_is_what_leaves_too_few_processors(
    loads, cores, environ, busy, monkeypatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: loads)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: cores)
    everything = set(range(99))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: everything, raising=False)
    assert others_are_busy(environ) is busy


def test_processors_of_others_do_not_count(monkeypatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda *_, **__: [0, 0, 100, 100])
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert not others_are_busy({})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2}, raising=False)
    assert others_are_busy({})


def test_the_setting_is_named() -> None:
    assert openmp_setting(SHORT_SPIN) == "GOMP_SPINCOUNT=100, KMP_BLOCKTIME=0"
    assert openmp_setting({"OMP_WAIT_POLICY": "passive"}) == "OMP_WAIT_POLICY=passive"
    assert openmp_setting({}) == "waiting threads as OpenMP has it"


def python(code: str, **variables: str) -> str:
    """What Python prints in an environment without any word on threads."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_importing_anything_of_the_course_sets_it_and_loads_no_torch() -> None:
    code = "import sys, utils; from utils.machine import *; print(openmp_setting()); "
    code += "print('torch' in sys.modules)"
    setting, torch_is_loaded = python(code).split("\n")
    assert setting in (openmp_setting(SHORT_SPIN), openmp_setting(LONG_SPIN))
    assert torch_is_loaded == "False"
    assert python(code, OMP_WAIT_POLICY="passive").startswith("OMP_WAIT_POLICY=passive")


def test_nothing_is_claimed_where_torch_was_there_first() -> None:
    code = "import torch; from utils.machine import *; print(openmp_setting())"
    assert python(code) == "waiting threads as OpenMP has it"


def test_the_endpoints_worker_gets_it() -> None:
    """The container's process imports the course; its worker inherits from that."""
    code = "import utils.djl_python.__main__, sys, os; "
    code += "print('GOMP_SPINCOUNT' in os.environ, 'torch' in sys.modules)"
    assert python(code) == "True False"


@pytest.mark.parametrize(
    "path", find_notebooks(ROOT / "notebooks"), ids=lambda path: path.stem
)
def test_a_notebook_imports_the_course_before_torch(path) -> None:
    """Whoever opens it in a JupyterLab of their own gets the setting too."""
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    libraries = "torch|transformers|datasets|peft|trl|sklearn|bitsandbytes|mlflow"
    first = re.search(rf"^\s*(?:import|from) (utils|{libraries})\b", code, re.M)
    assert first[1] == "utils"


# --- what libraries say of it ---

# Makes libraries say all that MACHINE_LINES lists but for the font cache, which takes
# many fonts, and MACHINE_WARNINGS, whatever the machine is.
TALK = """
import ctypes, importlib, os, platform
from types import SimpleNamespace
import bitsandbytes.functional
from bitsandbytes.backends.cpu import ops
bitsandbytes.functional.has_avx512bf16 = lambda: True
importlib.reload(ops)
from accelerate import PartialState
from accelerate.utils.other import check_os_kernel
PartialState(cpu=True)
old = SimpleNamespace(system="Linux", release="4.18.0-553.el8")
uname, platform.uname = platform.uname, lambda: old
check_os_kernel()
platform.uname = uname
import torch
load, ctypes.CDLL = ctypes.CDLL, lambda name: SimpleNamespace(nvmlInit=lambda: 9)
torch.cuda._raw_device_count_nvml()
ctypes.CDLL = load
import matplotlib
matplotlib.get_configdir()
os.environ["PATH"] = ""
from mlflow.utils.git_utils import get_git_commit
get_git_commit(".")
"""
SAID = (
    "gemm_4bit_forward",
    "Detected kernel version 4.18.0",
    "Can't initialize NVML",
    "mkdir -p failed",
    "temporary cache directory",
    "Failed to import Git",
)


def said(code: str, folder: Path) -> str:
    """What Python writes to stderr where no folder can be made for Matplotlib."""
    (folder / "file").touch()
    names = ("PYTHONWARNINGS", "GIT_PYTHON_REFRESH", "GIT_PYTHON_GIT_EXECUTABLE")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    kept |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"MPLCONFIGDIR": str(folder / "file" / "within")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_what_libraries_say_on_some_machines_only_is_not_shown(tmp_path) -> None:
    assert said("import utils" + TALK, tmp_path) == ""


@pytest.mark.slow
def test_without_the_course_they_say_it(tmp_path) -> None:
    loud = said(TALK, tmp_path)
    assert [words for words in SAID if words not in loud] == []


def test_all_else_that_these_loggers_say_is_shown(tmp_path) -> None:
    lines = [f"({name!r}, {words!r})" for name, words in MACHINE_LINES]
    code = f"""
import logging, sys, warnings
import utils
for name, words in [{", ".join(lines)}]:
    logger = logging.getLogger(name)
    logger.warning("[RANK 0] " + words + ": %s.", "here")
    logger.warning("another of %s", name)
    logger.getChild("within").warning("below %s", name)
warnings.warn("Can't initialize NVML")
warnings.warn("Can't get nvml device count")
"""
    shown = said(code, tmp_path)
    for name, words in MACHINE_LINES:
        assert words not in shown
        assert f"another of {name}\n" in shown
        assert f"below {name}\n" in shown
    assert "UserWarning: Can't get nvml device count" in shown
    assert "Can't initialize" not in shown


@pytest.mark.parametrize("name, words", MACHINE_LINES)
def test_the_installed_library_logs_such_a_line(name: str, words: str) -> None:
    """An entry that another version no longer needs should go."""
    package, *rest = name.split(".")
    folder = Path(importlib.util.find_spec(package).origin).parent
    path = folder.joinpath(*rest, "__init__.py")
    source = (path if path.exists() else path.parent.with_suffix(".py")).read_text()
    assert words in source
    assert re.search(r"^_?log(ger)? = .*get_?[lL]ogger\(__name__\)$", source, re.M)


def test_the_logger_of_bitsandbytes_keeps_its_level() -> None:
    models._quieten_libraries()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    assert logger.isEnabledFor(logging.WARNING)


# --- what it says of itself ---


def test_this_machine_describes_itself() -> None:
    found = this_machine()
    assert found.threads == torch.get_num_threads()
    assert (found.gpu is not None) == torch.cuda.is_available()
    assert ("no GPU" in str(found)) == (found.device == "cpu")
    assert "Tesla T4 · 15.8 GB, 15.0 GB free · no bfloat16" in str(T4)
    assert (found.capability is None) == (found.gpu is None)


def test_a_card_is_described_with_its_capability_and_cuda() -> None:
    card = Machine("L4", 24.0, 23.0, True, 4, capability="8.9", cuda="12.8")
    assert str(card).endswith("compute capability 8.9 · CUDA 12.8")


def test_bf16_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert cpu_has_bf16()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not cpu_has_bf16()


def test_pytorchs_own_switch_turns_bf16_off(monkeypatch: pytest.MonkeyPatch) -> None:
    # What ATEN_CPU_CAPABILITY=avx2 makes PyTorch say.
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert not cpu_has_bf16()


# --- the race ---


class Clock:
    """A clock that only the two passes move, and a note of how often they ran."""

    def __init__(self, float32: float, bfloat16: float) -> None:
        self.now, self.ran = 0.0, {"float32": 0, "bfloat16": 0}
        self.seconds = {"float32": float32, "bfloat16": bfloat16}

    def passes(self, shapes: object) -> dict:
        return {name: lambda name=name: self.run(name) for name in self.ran}

    def run(self, name: str) -> None:
        self.ran[name] += 1
        # The first pass, and every third one, meets a busy machine.
        busy = 5 if self.ran[name] % 3 == 1 else 1
        self.now += busy * self.seconds[name]


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes this a CPU with bfloat16 and given speeds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module in (machine, models):
        monkeypatch.setattr(module, "cpu_has_bf16", lambda: True)
    precision_race.cache_clear()

    def make(float32: float, bfloat16: float) -> Clock:
        clock = Clock(float32, bfloat16)
        fake = SimpleNamespace(perf_counter=lambda: clock.now)
        monkeypatch.setattr(machine, "time", fake)
        monkeypatch.setattr(machine, "_training_passes", clock.passes)
        return clock

    yield make
    precision_race.cache_clear()


@pytest.mark.parametrize(
    "ratio, winner",
    [
        (2.0, "bfloat16"),
        (1.01 * MARGIN, "bfloat16"),
        (0.99 * MARGIN, "float32"),
        (145 / 242, "float32"),
    ],
)
def test_the_faster_precision_trains_if_it_is_clearly_so(cpu, ratio, winner) -> None:
    cpu(0.02 * ratio, 0.02)
    found = this_machine()
    assert found.bf16 == (winner == "bfloat16")
    assert f"trains in {winner}: in a race bfloat16 was {ratio:.2f} times" in str(found)
    assert fastest_cpu_dtype(LAB_SHAPES) == getattr(torch, winner)


def test_one_race_a_process_of_a_fixed_length(cpu) -> None:
    clock = cpu(0.02, 0.01)
    for _ in range(3):
        this_machine()
    assert clock.ran == {"float32": 1 + ROUNDS, "bfloat16": 1 + ROUNDS}


def test_no_race_where_nobody_trains_or_there_is_nothing_to_decide(
    cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = cpu(0.02, 0.01)
    assert not this_machine(race=False).bf16
    load_model(MODELS["lab"])
    for module in (machine, models):
        monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)
    assert "no bfloat16 in hardware" in str(this_machine())
    assert fastest_cpu_dtype() == torch.float32
    assert set(clock.ran.values()) == {0}


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_course_dtype_overrides_the_race(cpu, monkeypatch, wanted) -> None:
    clock = cpu(*((0.01, 0.02) if wanted == "bfloat16" else (0.02, 0.01)))
    monkeypatch.setenv("COURSE_DTYPE", wanted)
    assert this_machine().bf16 == (wanted == "bfloat16")
    assert f"{wanted}, as COURSE_DTYPE says" in str(this_machine())
    assert set(clock.ran.values()) == {0}


def test_a_wrong_course_dtype_is_told_with_the_remedy(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="COURSE_DTYPE is 'bf16': give 'float32'"):
        run_config({"COURSE_DTYPE": "bf16"})
    monkeypatch.setenv("COURSE_DTYPE", "float16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="COURSE_DTYPE is 'float16', which no CPU"):
        this_machine()


@pytest.mark.parametrize(
    "wanted, bf16", [(None, False), ("bfloat16", True), ("float16", False)]
)
def test_course_dtype_counts_on_a_card(monkeypatch, wanted, bf16) -> None:
    card(monkeypatch)
    if wanted:
        monkeypatch.setenv("COURSE_DTYPE", wanted)
    assert this_machine().bf16 == bf16


def test_float32_is_no_choice_on_a_card(monkeypatch) -> None:
    card(monkeypatch)
    monkeypatch.setenv("COURSE_DTYPE", "float32")
    with pytest.raises(ConfigError, match="'float32', but on a GPU .Tesla T4"):
        this_machine()


def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make PyTorch see a T4."""
    answers = {
        "is_available": True,
        "mem_get_info": (15e9, 16e9),
        "get_device_name": "Tesla T4",
        "get_device_capability": (7, 5),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)


@pytest.mark.parametrize(
    "shapes", [LAB_SHAPES, ((2560, 7680), (2560, 2560), (2560, 10240), (10240, 2560))]
)
def test_a_pass_is_small_whatever_the_model(shapes) -> None:
    cut = machine._slices(shapes)
    assert 4 * TOKENS * sum(i * o for i, o in cut) <= 2 * MOST_OPERATIONS
    assert [inputs for inputs, _ in cut] == [inputs for inputs, _ in shapes]


def test_a_pass_computes_both_precisions_and_draws_no_random_number() -> None:
    before = torch.random.get_rng_state()
    passes = machine._training_passes(((16, 64), (64, 16)))
    with torch.inference_mode():  # whatever the caller is doing
        for run in passes.values():
            run()
    assert set(passes) == {"float32", "bfloat16"}
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_real_race_has_a_result() -> None:
    times = precision_race(((16, 64),))
    precision_race.cache_clear()
    assert times.float32 > 0 and times.bfloat16 > 0
    assert Race(2.0, 1.0).ratio == 2


def test_the_shapes_are_the_models(tmp_path) -> None:
    layer = load_model(MODELS["lab"]).gpt_neox.layers[0]
    linear = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    real = {(one.in_features, one.out_features) for one in linear}
    assert set(model_shapes("lab")) == set(LAB_SHAPES) == real
    (tmp_path / "config.json").write_text('{"n_embd": 8, "n_inner": null}')
    expected = ((8, 24), (8, 8), (8, 32), (32, 8))
    assert model_shapes(str(tmp_path)) == expected
    assert model_shapes("nobody/nothing-here") == LAB_SHAPES
