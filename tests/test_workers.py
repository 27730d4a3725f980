"""Several workers reach the loss of one, in the way that they say, and all of them end.

Each start of workers costs seconds of imports, so the tests share a few runs.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from utils.course import ROOT
from utils.helpers import IGNORED
from utils.jobs import several, shares, wrapping
from utils.jobs.workers import (
    WorkerError,
    WorkerReport,
    run_workers,
    worker_table,
)

TINY = {
    "model_type": "gpt_neox",
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
STEPS, CUT = 12, 5  # CUT is in the second pass
MODULE = "utils.jobs.several"


def random_rows(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows of unlike lengths, with answers of unlike lengths."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(3, 90) for _ in range(draw.randint(6, 24))]
        prompt = draw.randint(1, len(ids) - 2)
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return rows


# 17 rows in batches of 8: the last batch of a pass has one row, and a worker has none.
ROWS, HELD_OUT = random_rows(17, seed=0), random_rows(5, seed=1)
SAME = dict(model=TINY, steps=STEPS, learning_rate=0.02, seed=3)


def trained_weights(checkpoint: Path, step: int = STEPS) -> torch.Tensor:
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["step"] == step
    return torch.cat([one.flatten() for _, one in sorted(saved["model"].items())])


def gradient_averages(checkpoint: Path) -> torch.Tensor:
    """Adam's first average of each trained number: gradients, with their scale."""
    state = torch.load(checkpoint, weights_only=True)["optimizer"]["state"]
    return torch.cat([state[name]["exp_avg"].flatten() for name in sorted(state)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def one(folder: Path) -> list[WorkerReport]:
    return run_workers(1, "one", ROWS, HELD_OUT, **SAME, checkpoint=folder / "one.pt")


@pytest.fixture(scope="module")
def ddp(folder: Path) -> list[WorkerReport]:
    return run_workers(
        *(2, "ddp", ROWS, HELD_OUT),
        **SAME,
        checkpoint=folder / "ddp.pt",
        measured_rounds=3,
        ask_trainer=True,
    )


@pytest.fixture(scope="module")
def fsdp_cut(folder: Path) -> list[WorkerReport]:
    """The first steps of the next run, which ended there with a checkpoint."""
    first = SAME | {"steps": CUT}
    return run_workers(2, "fsdp", ROWS, **first, checkpoint=folder / "fsdp_cut.pt")


@pytest.fixture(scope="module")
def fsdp(fsdp_cut, folder: Path) -> list[WorkerReport]:
    """A run that goes on from a checkpoint: its reports have the losses since."""
    checkpoint = folder / "fsdp.pt"
    shutil.copy(folder / "fsdp_cut.pt", checkpoint)
    return run_workers(2, "fsdp", ROWS, HELD_OUT, **SAME, checkpoint=checkpoint)


@pytest.fixture(params=["ddp", "fsdp"])
def two(request) -> list[WorkerReport]:
    return request.getfixturevalue(request.param)


# --- the same loss ---


def test_one_worker_learns(one) -> None:
    """Else equal losses would say nothing: what is learned is far above the tolerance.

    Steps 1, 4, 7 … of a pass of three batches see the same rows in other orders.
    """
    [report] = one
    assert (report.wrapped, report.count) == ("PeftModelForCausalLM", 1)
    assert len(report.losses) == STEPS
    assert report.losses[0] - min(report.losses) > 0.1


def test_two_workers_reach_the_losses_of_one(one, ddp, fsdp_cut) -> None:
    for two in (ddp, fsdp_cut):
        for report in two:
            expected = one[0].losses[: len(report.losses)]
            assert report.losses == pytest.approx(expected, abs=1e-4)
        assert two[0].losses == two[1].losses
    assert (len(ddp[0].losses), len(fsdp_cut[0].losses)) == (STEPS, CUT)


def test_sharded_workers_go_on_from_their_checkpoint(one, fsdp, folder) -> None:
    """As if nothing had ended; other tests compare weights, and what Adam keeps."""
    before = trained_weights(folder / "fsdp_cut.pt", CUT)
    assert (before - trained_weights(folder / "one.pt")).norm() > 0.1 * before.norm()
    for report in fsdp:
        assert report.losses == pytest.approx(one[0].losses[CUT:], abs=1e-4)
    assert fsdp[0].losses == fsdp[1].losses
    afresh = one[0].losses[: STEPS - CUT]
    assert fsdp[0].losses != pytest.approx(afresh, abs=1e-2)


def test_two_workers_reach_the_weights_of_one(one, two, folder) -> None:
    first, other = (
        trained_weights(folder / f"{name}.pt") for name in ("one", two[0].how)
    )
    assert torch.allclose(first, other, atol=1e-3)
    assert first.std() > 0.02


# --- who holds what, and as what ---


def test_the_type_that_trains_is_the_one_asked_for(ddp, fsdp) -> None:
    assert {report.wrapped for report in ddp} == {"DistributedDataParallel"}
    assert {report.wrapped for report in fsdp} == {"FSDPPeftModelForCausalLM"}


def test_on_a_processor_the_trainer_takes_ddp_for_fsdp(ddp) -> None:
    """Why the loop is our own: if this fails one day, the Trainer can do it."""
    assert {report.trainer_wraps for report in ddp} == {"DistributedDataParallel"}


def test_each_ddp_worker_holds_the_whole_model(one, ddp) -> None:
    for report in ddp:
        assert report.parameters == report.parameters_held == one[0].parameters
        assert report.trained == report.trained_held == one[0].trained


def test_fsdp_workers_share_the_model_out(one, fsdp) -> None:
    for report in fsdp:
        assert report.parameters == one[0].parameters
        assert 0.45 < report.share < 0.55
    assert sum(report.parameters_held for report in fsdp) == one[0].parameters
    assert sum(report.trained_held for report in fsdp) == one[0].trained


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_model_that_is_not_wrapped_is_refused(how) -> None:
    with pytest.raises(WorkerError, match=f"'{how}' was asked for.*is a Linear"):
        wrapping.require_wrapped(torch.nn.Linear(2, 2), how)


def test_a_block_that_fully_shard_was_not_told_of_is_found(tmp_path) -> None:
    """One process is enough: its share is all, and sharded it is all the same."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        left_out = torch.nn.Linear(2, 2)
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), left_out)
        ignored = set(left_out.parameters())
        mesh = init_device_mesh("cpu", (1,))
        fully_shard(model, mesh=mesh, ignored_params=ignored)
        with pytest.raises(WorkerError, match="2 weights are not sharded, 1.weight"):
            wrapping.require_wrapped(model, "fsdp")
        with pytest.raises(WorkerError, match="'one' was asked for"):
            wrapping.require_wrapped(model, "one")
    finally:
        dist.destroy_process_group()


# --- rows ---


def test_an_odd_number_of_held_out_rows_counts_each_once(one, two) -> None:
    assert one[0].held_out_rows == one[0].computed_rows == len(HELD_OUT)
    for report in two:
        assert (report.held_out_rows, report.computed_rows) == (5, 6)
        assert report.held_out_loss == pytest.approx(one[0].held_out_loss, abs=1e-4)
        # With the repeated row the mean is another one: the test could fail.
        assert abs(report.repeated_loss - report.held_out_loss) > 1e-3


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_workers_share_each_batch_and_each_pass_out(count) -> None:
    seen = []
    for step in range(6):  # two passes of 8, 8 and 1 rows
        batch = shares.batch_of_step(ROWS, 8, step, seed=0)
        parts = [shares.share_of(batch, rank, count) for rank in range(count)]
        assert all(parts), "a worker without rows would let the others wait"
        counted = [row for part in parts for row in part if any_counts(row)]
        assert sorted(map(str, counted)) == sorted(map(str, batch))
        seen += counted
    assert sorted(map(str, seen)) == sorted(map(str, 2 * ROWS))


def any_counts(row: dict[str, list[int]]) -> bool:
    return shares.counted_tokens([row]) > 0


def test_two_workers_have_the_gradients_of_one(one, two, folder) -> None:
    """Adam's steps would hardly tell gradients that are half as large."""
    first, other = (
        gradient_averages(folder / f"{name}.pt") for name in ("one", two[0].how)
    )
    assert (first - other).norm() < 1e-2 * first.norm()


def test_the_second_pass_has_another_order_and_the_same_step_the_same() -> None:
    first, second = (shares.batch_of_step(ROWS, 8, step, seed=0) for step in (0, 3))
    assert first != second
    assert first == shares.batch_of_step(ROWS, 8, 0, seed=0)


# --- where the time goes ---

PARTS = ("bare", "wrapped")


class Parts:
    """Stands for a worker's clock, in which each part of a round takes what it is told.

    Args:
        rounds: seconds of each round for the model alone, until the last worker is
            done, and for the wrapped model until its own barrier.
    """

    def __init__(self, rounds: list[tuple[float, float, float]]) -> None:
        self.rounds, self.now = iter(rounds), 0.0
        self.computed: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def loss_of(self, model: SimpleNamespace, rows: object, tokens: int) -> Parts:
        self.model = model.name
        return self

    def __rmul__(self, count: int) -> Parts:
        assert count == 2  # the workers
        return self

    def backward(self) -> None:
        if len(self.computed) % 2 == 0:  # the first of the two models of a round
            bare, wait, wrapped = next(self.rounds)
            self.round = {"bare": bare, "wait": wait, "wrapped": wrapped}
        self.computed.append(self.model)
        self.now += self.round[self.model]

    def barrier(self) -> None:
        """Take time only after the model alone: waiting for the slowest worker."""
        if self.computed and self.model == "bare":
            self.now += self.round.pop("wait", 0.0)


def test_the_parts_of_the_time_are_what_a_clock_says(monkeypatch) -> None:
    """The first round does not count; of the others, a slow one changes nothing."""
    clock = Parts([(90, 90, 90), (2, 1, 7), (2, 50, 7), (60, 1, 80)])
    monkeypatch.setattr(several, "time", clock)
    monkeypatch.setattr(several, "loss_of", clock.loss_of)
    for name, found in {"get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(torch.distributed, name, lambda found=found: found)
    monkeypatch.setattr(torch.distributed, "barrier", clock.barrier)
    order = SimpleNamespace(rows=ROWS, batch_size=8, seed=3, measured_rounds=3)
    bare, wrapped = (
        SimpleNamespace(name=name, zero_grad=lambda: None) for name in PARTS
    )
    assert several.time_parts(bare, wrapped, order) == (2, 1, 7 - 2 - 1)
    # By turns, so that whatever comes second gains nothing.
    assert clock.computed == [*PARTS[::-1], *PARTS, *PARTS[::-1], *PARTS]


def test_the_parts_of_the_time_are_measured_where_asked_for(one, ddp) -> None:
    """Both workers go from one barrier to the next: they compute and wait as long."""
    for report in ddp:
        assert report.compute > 0 and report.waiting > 0
    first, second = (report.compute + report.waiting for report in ddp)
    assert 0.2 < first / second < 5
    assert (one[0].compute, one[0].waiting, one[0].communication) == (None,) * 3
    # One thread cannot work longer than a step takes, and gloo's own work less.
    for report in [*one, *ddp]:
        assert 0 < report.processor_seconds_a_step < 2 * report.seconds_a_step


def report_of(**given: object) -> WorkerReport:
    fields = dict.fromkeys(WorkerReport.__dataclass_fields__)
    return WorkerReport(**fields | {"parameters": 4_000_000} | given)


def test_the_table_says_what_the_reports_say() -> None:
    """In milliseconds and millions, with nothing where nothing was measured."""
    first = report_of(
        **{"rank": 0, "count": 2, "how": "ddp", "wrapped": "Type", "threads": 3},
        **{"losses": (2.0, 1.5), "parameters_held": 3_000_000},
        **{"seconds_a_step": 0.25, "processor_seconds_a_step": 0.125},
        **{"compute": 0.5, "waiting": 0.0625, "communication": -0.001},
    )
    second = report_of(rank=1, count=2, how="ddp", losses=(), parameters_held=1_000_000)
    table = worker_table([first, second])
    assert table.to_dict("records")[0] == {
        **{"how": "ddp", "worker": "1 of 2", "wrapped in": "Type", "threads": 3},
        **{"last loss (nats)": 1.5, "held (million numbers)": 3, "share held": 0.75},
        **{"step (ms)": 250, "processor (ms)": 125, "compute (ms)": 500},
        **{"waiting (ms)": 62.5, "communication (ms)": -1},
    }
    assert list(table["worker"]) == ["1 of 2", "2 of 2"]
    assert list(table["share held"]) == [0.75, 0.25]
    empty = table.iloc[1].drop(["how", "worker", "held (million numbers)"])
    assert list(empty.dropna().index) == ["share held"]


# --- a worker that fails, and going on from there ---


@pytest.fixture(scope="module")
def failed(folder: Path) -> tuple[int, str]:
    """A run whose second step has a row that one worker alone cannot compute.

    Returns:
        That worker's rank, and the message.
    """
    second = shares.batch_of_step(ROWS, 8, 1, seed=SAME["seed"])
    place = 3  # in the batch; its rank is 1
    rows = [
        {"input_ids": [5, 4000, 6], "labels": [5, 4000, 6]}
        if row is second[place]
        else row
        for row in ROWS
    ]
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(WorkerError) as caught:
        run_workers(2, "ddp", rows, **SAME, checkpoint=folder / "cut.pt", save_every=1)
    assert set(psutil.Process().children(recursive=True)) <= before
    return place % 2, str(caught.value)


def test_the_message_is_that_of_the_worker_that_failed(failed) -> None:
    """The other one fails as well, for want of its answers."""
    rank, message = failed
    assert f"Worker {rank + 1} of 2 (rank {rank}) failed in `loss_of`" in message
    assert "IndexError: index out of range" in message


def test_a_resumed_run_ends_with_the_weights_of_one_never_stopped(
    failed, ddp, folder
) -> None:
    cut = folder / "cut.pt"
    assert torch.load(cut, weights_only=True)["step"] == 1
    resumed = run_workers(2, "ddp", ROWS, **SAME, checkpoint=cut)
    assert resumed[0].losses == ddp[0].losses[1:]
    assert torch.equal(trained_weights(cut), trained_weights(folder / "ddp.pt"))


# --- what goes wrong ---


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        try:
            if MODULE in child.cmdline() and "torch.distributed.run" not in " ".join(
                child.cmdline()
            ):
                found.append(child)
        except psutil.Error:
            continue
    return found


def until(condition: Callable[[], object], seconds: float = 180) -> object:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not after {seconds} s"
        time.sleep(0.05)
    return found


@pytest.fixture
def left_nothing():
    """Whatever a test starts has ended when it is done."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [one for one in left if one.status() != psutil.STATUS_ZOMBIE]


def test_the_workers_end_with_a_parent_that_is_killed(tmp_path) -> None:
    program = (
        "from utils.jobs.workers import run_workers\n"
        f"run_workers(2, 'ddp', {ROWS!r}, model={TINY!r}, steps=100_000)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    started = psutil.Process(parent.pid)
    until(lambda: len(workers_of(started)) == 2)
    family = started.children(recursive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(family, 180)
    for process in alive:
        process.kill()
    assert not alive


@pytest.mark.slow
def test_a_worker_that_is_killed_says_nothing_and_is_reported(left_nothing) -> None:
    """As the kernel kills the one that has no memory left."""
    this = psutil.Process()

    def found() -> list[psutil.Process]:
        return workers_of(this)

    killer = threading.Thread(
        target=lambda: (until(lambda: len(found()) == 2), found()[1].kill())
    )
    killer.start()
    with pytest.raises(WorkerError, match="(?s)none of them said why.*SIGKILL"):
        run_workers(2, "ddp", ROWS, model=TINY, steps=100_000)
    killer.join()


def test_a_run_that_takes_too_long_is_stopped(left_nothing) -> None:
    with pytest.raises(WorkerError, match="not done after 1 s and were stopped"):
        run_workers(2, "ddp", ROWS, model=TINY, steps=100_000, timeout=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"how": "fsdp1"}, "how: found 'fsdp1'. Give one of one, ddp, fsdp"),
        ({"how": "one"}, "count: found 2 with how='one'"),
        ({"count": 0}, "count: found 0"),
        ({"rows": []}, "rows: there are none"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"rows": [*ROWS, {"input_ids": [1]}]}, r"rows, row 17.*\['input_ids'\]"),
        (
            {"held_out": [{"input_ids": [1, 2], "labels": [1, IGNORED]}]},
            "held_out, row 0.*0 count",
        ),
    ],
)
def test_what_no_worker_could_do_is_refused_before_any_starts(changes, message) -> None:
    arguments = {"count": 2, "how": "ddp", "rows": ROWS} | changes
    with pytest.raises(WorkerError, match=message):
        run_workers(**arguments, model=TINY)


def test_a_broken_checkpoint_is_named(tmp_path) -> None:
    file = tmp_path / "torn.pt"
    file.write_bytes(b"PK\x03\x04")
    order = SimpleNamespace(checkpoint=str(file))
    with pytest.raises(WorkerError, match="torn.pt cannot be read as a checkpoint"):
        several.load_checkpoint(order, None, None)
