"""The files in data/jobs mean to accelerate and transformers what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments

from support.tiny_models import tiny_llama
from utils.course import ROOT

FOLDER = ROOT / "data" / "jobs"
ACCELERATE = ["one_node_fsdp_qlora.yaml", "several_nodes_fsdp.yaml"]
TRAINER = FOLDER / "sagemaker_trainer_fsdp.json"


def unknown_keys(config: ClusterConfig) -> set[str]:
    """Keys of FSDP and the mesh that `accelerate launch` has no option for.

    It sets each as an attribute that nothing reads: a misspelt one has no effect.
    """
    known = {action.dest for action in launch_command_parser()._actions}
    return (set(config.fsdp_config) | set(config.parallelism_config)) - known


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_reads_the_file_and_knows_every_key(name) -> None:
    config = load_config_from_file(str(FOLDER / name))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == DistributedType.FSDP
    assert config.fsdp_config["fsdp_version"] == 2
    assert unknown_keys(config) == set()
    sizes = config.parallelism_config
    if sizes:
        workers = [size for key, size in sizes.items() if key.endswith("_size")]
        assert torch.tensor(workers).prod() == config.num_processes
    assert config.num_processes % config.num_machines == 0


def test_a_misspelt_key_would_be_found(tmp_path) -> None:
    read = yaml.safe_load((FOLDER / ACCELERATE[0]).read_text("utf-8"))
    read["fsdp_config"]["fsdp_reshard_after_foward"] = True
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(read))
    config = load_config_from_file(str(tmp_path / "wrong.yaml"))
    assert unknown_keys(config) == {"fsdp_reshard_after_foward"}


# What `accelerate launch` would set in the environment of each worker. In a process of
# its own: it leaves them in its own environment as well.
AS_LAUNCHED = """
import json, sys
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

arguments = launch_command_parser().parse_args(["--config_file", *sys.argv[1:], "x.py"])
arguments, *_ = _validate_launch_command(arguments)
given = prepare_multi_gpu_env(arguments)
start = ("FSDP_", "ACCELERATE_", "PARALLELISM_")
found = {name: value for name, value in given.items() if name.startswith(start)}
found |= {name: vars(arguments).get(name) for name in ("nproc_per_node", "nnodes")}
print(json.dumps(found))
"""


def launched(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", AS_LAUNCHED, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ACCELERATE)
def test_the_workers_get_what_the_file_says(name, monkeypatch) -> None:
    file = FOLDER / name
    several = name.startswith("several")
    more = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"] if several else []
    found = launched(str(file), *more)
    assert found["ACCELERATE_USE_FSDP"] == "true"
    assert found["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert str(found["nproc_per_node"]) == "8"
    for key, value in found.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing is True
    assert plugin.cpu_ram_efficient_loading is several
    kind = "SHARDED_STATE_DICT" if several else "FULL_STATE_DICT"
    assert plugin.state_dict_type.name == kind
    if several:
        assert found["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"] == "2"
        assert str(found["nnodes"]) == "2"
    else:
        assert "ACCELERATE_USE_PARALLELISM_CONFIG" not in found


def test_the_trainer_reads_the_same_from_its_arguments(tmp_path) -> None:
    """What SageMaker's torchrun driver needs: there is no `accelerate launch`."""
    read = json.loads(TRAINER.read_text("utf-8"))
    known = set(read["fsdp_config"])
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **read)
    plugin = arguments.fsdp_plugin_args
    assert arguments.bf16 and arguments.fsdp is True
    assert plugin["fsdp_version"] == 2
    assert plugin["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert plugin["reshard_after_forward"] is True
    assert plugin["activation_checkpointing"] is True
    assert plugin["state_dict_type"] == "FULL_STATE_DICT"
    documented = TrainingArguments.__doc__
    for key in known:
        assert f"- {key} (" in documented, key


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny base whose layers bitsandbytes can pack."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tiny_llama(width=64).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "sharded"), [({}, True), ({"bnb_4bit_quant_storage": "uint8"}, False)]
)
def test_4_bit_weights_are_stored_in_a_type_that_fsdp_shards(
    base, changes, sharded
) -> None:
    """accelerate's own condition (utils/fsdp_utils.py): only floats are sharded."""
    read = json.loads((FOLDER / "quantisation_4bit.json").read_text("utf-8"))
    config = BitsAndBytesConfig(**(read | changes))
    assert set(read) <= set(BitsAndBytesConfig().to_dict())
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
    packed = [one for one in model.parameters() if type(one).__name__ == "Params4bit"]
    assert len(packed) == 14  # two blocks of seven linear layers
    assert {one.is_floating_point() for one in packed} == {sharded}


def test_the_readme_has_a_line_for_each_file() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    names = {file.name for file in FOLDER.iterdir()} - {"README.md"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
