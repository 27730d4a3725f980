"""What is recorded of a training run: in MLflow, and as a file of losses."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import write_json
from utils.models import ModelSettings
from utils.training.recipe import TrainingError

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

EXPERIMENT = "fine-tuning"


def track_runs(build: Path) -> None:
    """Let every Trainer with `report_to="mlflow"` record its run in build/mlflow.db.

    Where the variable MLFLOW_TRACKING_URI is set, such as to the ARN of an MLflow
    server on SageMaker, the runs go there instead.
    """
    # Neither reports on its use to its makers nor on the tables that it creates.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    build.mkdir(parents=True, exist_ok=True)
    local = f"sqlite:///{(build / 'mlflow.db').as_posix()}"
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or local)
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        here = mlflow.get_tracking_uri() == local
        place = (build / "mlflow").as_uri() if here else None
        mlflow.create_experiment(EXPERIMENT, artifact_location=place)
    mlflow.set_experiment(EXPERIMENT)


def tracked_history(run_name: str) -> list[dict[str, float]]:
    """Return the losses of the newest run of this name, as the Trainer logs them.

    Returns:
        Rows as in `trainer.state.log_history`, with `epoch`, `step`, and `loss` or
        `eval_loss`.

    Raises:
        TrainingError: if no run of this name is recorded.
    """
    import mlflow

    mlflow.flush_async_logging()
    found = mlflow.search_runs(
        experiment_names=[EXPERIMENT],
        filter_string=f"attributes.run_name = '{run_name}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    if not found:
        raise TrainingError(
            f"No run named {run_name!r} is recorded in {mlflow.get_tracking_uri()}: "
            "call track_runs before the Trainer is made, and train."
        )
    client, run = mlflow.MlflowClient(), found[0].info.run_id
    # A step that was logged before and after a resume holds the same number twice.
    logged = {
        name: {one.step: one.value for one in client.get_metric_history(run, name)}
        for name in ("epoch", "loss", "eval_loss")
    }
    return [
        {"epoch": logged["epoch"][step], "step": step, name: value}
        for name in ("loss", "eval_loss")
        for step, value in sorted(logged[name].items())
    ]


@contextmanager
def continue_tracking(trainer: Trainer, run_id: str | None) -> Iterator[None]:
    """Go on in the MLflow run with this id, if it exists; close a failed one."""
    if "mlflow" not in trainer.args.report_to:
        yield
        return
    import mlflow
    from mlflow.exceptions import MlflowException
    from transformers.integrations import MLflowCallback

    if run_id:
        # Its file may have been deleted: then it is a new run.
        with suppress(MlflowException):
            mlflow.get_run(run_id)
            os.environ["MLFLOW_RUN_ID"] = run_id
    try:
        yield
    except BaseException:
        mlflow.end_run("FAILED")
        raise
    finally:
        os.environ.pop("MLFLOW_RUN_ID", None)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, MLflowCallback):
                # Or it ends whatever run is active when it is garbage one day.
                callback._auto_end_run = False


def tracked_run(arguments: TrainingArguments) -> str | None:
    """Return the id of the MLflow run that is recorded now, or None."""
    if "mlflow" not in arguments.report_to:
        return None
    import mlflow

    run = mlflow.active_run()
    return run.info.run_id if run else None


def save_history(
    history: Sequence[Mapping[str, float]], settings: ModelSettings, file: str | Path
) -> Path:
    """Write the Trainer's log and the settings to a JSON file, all or nothing."""
    from dataclasses import asdict

    content = {"settings": asdict(settings), "history": list(history)}
    return write_json(Path(file), content)
