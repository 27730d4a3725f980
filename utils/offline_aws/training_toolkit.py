"""The second contract of a training job: what the toolkit in AWS's images does.

A job without an entrypoint of its own names a program (`sagemaker_program`) and an
archive of sources, which lies unpacked in /opt/ml/code. The program gets its
hyperparameters as `--key value` and as variables SM_…. Names, order and spelling:
aws/sagemaker-training-toolkit, `environment.py`, `mapping.py`, `process.py` and
`errors.py`. A value is decoded from JSON first: True comes as "True", a list as
"[1, 2]", a mapping as "a=1,b=2".

It imports nothing of ours: a copy of it runs in the job.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BASE = Path("/opt/ml")
CONFIG = BASE / "input" / "config"
CODE = BASE / "code"
FAILURE = BASE / "output" / "failure"
OWN = "sagemaker_"  # hyperparameters that are the SDK's, not the program's
OF_TUNING = "_tuning_objective_metric"  # likewise: toolkit, `params.py`
PROGRAM, SOURCE = "sagemaker_program", "sagemaker_submit_directory"
LINES_OF_ERROR = 50  # the end of what the program has written to stderr


def decoded(text: str) -> Any:
    """Return a hyperparameter's value; a text that is no JSON stays as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def read(name: str) -> dict[str, Any]:
    """Return a file of the configuration."""
    return json.loads((CONFIG / f"{name}.json").read_text("utf-8"))


def as_variable(value: Any) -> str:
    """Write a value as the toolkit writes it into a variable."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def as_argument(value: Any) -> str:
    """Write a value as the toolkit writes it onto the command line."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={one}" for key, one in sorted(value.items()))
    return "" if value is None else str(value)


def arguments_of(hyperparameters: dict[str, Any]) -> list[str]:
    """Return the program's arguments, in the order of their names."""
    found = []
    for key in sorted(hyperparameters):
        dashes = "--" if len(key) > 1 else "-"
        found += [f"{dashes}{key}", as_argument(hyperparameters[key])]
    return found


def graphics_cards() -> int:
    """Count the GPUs that the driver lists."""
    try:
        listed = subprocess.check_output(["nvidia-smi", "--list-gpus"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def variables(
    hyperparameters: dict[str, Any], program: str, source: str
) -> dict[str, str]:
    """Return the SM_ variables of the program."""
    resources, channels = read("resourceconfig"), read("inputdataconfig")
    folders = {name: str(BASE / "input" / "data" / name) for name in channels}
    # Of these there is a variable each, and a member of SM_TRAINING_ENV.
    shared = {
        "current_host": resources["current_host"],
        "hosts": resources["hosts"],
        "input_config_dir": str(CONFIG),
        "input_data_config": channels,
        "input_dir": str(BASE / "input"),
        "log_level": 20,
        "model_dir": str(BASE / "model"),
        "module_dir": source,
        "module_name": Path(program).stem,
        "network_interface_name": resources["network_interface_name"],
        "num_cpus": os.cpu_count(),
        "num_gpus": graphics_cards(),
        "output_data_dir": str(BASE / "output" / "data"),
        "resource_config": resources,
        "user_entry_point": program,
    }
    environment = {
        **shared,
        "additional_framework_parameters": {},
        "channel_input_dirs": folders,
        "hyperparameters": hyperparameters,
        "is_master": resources["current_host"] == resources["hosts"][0],
        "job_name": os.environ.get("TRAINING_JOB_NAME", ""),
        "master_hostname": resources["hosts"][0],
    }
    found: dict[str, Any] = {
        **{f"SM_{name.upper()}": value for name, value in shared.items()},
        **{f"SM_CHANNEL_{name.upper()}": path for name, path in folders.items()},
        **{f"SM_HP_{key.upper()}": value for key, value in hyperparameters.items()},
        "SM_CHANNELS": sorted(folders),
        "SM_CURRENT_INSTANCE_TYPE": resources["current_instance_type"],
        "SM_CURRENT_INSTANCE_GROUP": resources["current_group_name"],
        "SM_CURRENT_INSTANCE_GROUP_HOSTS": resources["hosts"],
        "SM_HPS": hyperparameters,
        "SM_MASTER": resources["hosts"][0],
        "SM_OUTPUT_DIR": str(BASE / "output"),
        "SM_TRAINING_ENV": environment,
        "SM_USER_ARGS": arguments_of(hyperparameters),
    }
    return {name: as_variable(value) for name, value in found.items()}


def fail(text: str) -> None:
    """Write a reason, unless the program has written one."""
    if not FAILURE.exists():
        FAILURE.write_text(text, "utf-8")


def install_requirements() -> int:
    """Install the requirements of the sources, as far as pip may; return its code."""
    if not (CODE / "requirements.txt").is_file():
        return 0
    command = [sys.executable, "-m", "pip", "install", "-r", "requirements.txt"]
    code = subprocess.call(command, cwd=CODE)
    if code:
        command_line = shlex.join(command)
        fail(f'InstallRequirementsError:\nExitCode {code}\nCommand "{command_line}"')
    return code


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run the program; return its code, and write of a failure what it said."""
    process = subprocess.Popen(
        command, cwd=CODE, env=environment, stderr=subprocess.PIPE
    )
    errors: deque[bytes] = deque(maxlen=LINES_OF_ERROR)

    def pass_on() -> None:
        for line in process.stderr:
            errors.append(line)
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    code = process.wait()
    reader.join(1)
    if code:
        said = b"".join(errors).decode("utf-8", "replace").strip()
        fail(
            f'ExecuteUserScriptError:\nExitCode {code}\nErrorMessage "{said}"\n'
            f'Command "{shlex.join(command)}"'
        )
    return code


def main() -> int:
    """Run the program that the hyperparameters name."""
    given = {key: decoded(text) for key, text in read("hyperparameters").items()}
    program, source = str(given[PROGRAM]), str(given[SOURCE])
    own = {
        key: value
        for key, value in given.items()
        if not key.startswith(OWN) and key != OF_TUNING
    }
    if not (CODE / program).is_file():
        fail(f"{program} is not in {source}. Pack it at the top of the archive.")
        print(FAILURE.read_text("utf-8"), file=sys.stderr)
        return 1
    if code := install_requirements():
        return code
    arguments = arguments_of(own)
    if program.endswith(".py"):
        command = [sys.executable, program, *arguments]
    else:
        with contextlib.suppress(OSError):
            (CODE / program).chmod(0o700)
        command = ["/bin/sh", "-c", f"./{program} {' '.join(arguments)}"]
    environment = {**os.environ, **variables(own, program, source)}
    paths = [str(CODE), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    print(f"Invoking script with the following command:\n\n{shlex.join(command)}\n")
    sys.stdout.flush()
    code = run(command, environment)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
