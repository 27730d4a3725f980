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
    "check_accumulation": [
        (
            "def accumulate(model, parts):\n"
            "    for part in parts:\n"
            "        model(**part).loss.backward()",
            "adds up 2 means",
        ),
        (
            "def accumulate(model, parts):\n"
            "    for part in parts:\n"
            "        (model(**part).loss / len(parts)).backward()",
            "every part counts the same",
        ),
        (
            "def accumulate(model, parts):\n"
            "    for part in parts:\n"
            "        model.zero_grad()\n"
            "        model(**part).loss.backward()",
            "only the last part",
        ),
    ],
    "check_best_epoch": [
        (
            'best_epoch = min(history, key=lambda row: row.get("loss", 99))["epoch"]',
            "the training loss is lowest",
        ),
        (
            'best_epoch = min(r["eval_loss"] for r in history if "eval_loss" in r)',
            "that is the loss",
        ),
    ],
}
