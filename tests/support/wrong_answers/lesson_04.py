"""Mistakes planted in the exercises of 04_lora_training."""

WRONG_ANSWERS = {
    "check_lora_parameters": [
        (
            "count = sum(rank * (i + o) for i, o in shapes.values())",
            "for every linear layer",
        ),
        (
            "count = sum(rank * i for n, (i, o) in shapes.items() if target in n)",
            "one of the two matrices",
        ),
        (
            "count = sum(rank * i * o for n, (i, o) in shapes.items() if target in n)",
            "are narrow",
        ),
    ],
    "check_best_epoch": [
        (
            'best_epoch = min(small_run, key=lambda row: row.get("loss", 99))["epoch"]',
            "the training loss is lowest",
        ),
        (
            'best_epoch = min(r["eval_loss"] for r in small_run if "eval_loss" in r)',
            "that is the loss",
        ),
        (
            'measured = [r["eval_loss"] for r in small_run if "eval_loss" in r]\n'
            "best_epoch = measured.index(min(measured))",
            "count from 0",
        ),
    ],
}
