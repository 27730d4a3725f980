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
            "def best_epoch(history, name):\n"
            '    return min(history, key=lambda row: row.get("loss", 99))["epoch"]',
            "of the lowest training loss",
        ),
        (
            "def best_epoch(history, name):\n"
            "    return min(row[name] for row in history if name in row)",
            "it returns the loss",
        ),
        (
            "def best_epoch(history, name):\n"
            '    return min(history, key=lambda row: row[name])["epoch"]',
            "Most rows have one of the losses",
        ),
    ],
}
