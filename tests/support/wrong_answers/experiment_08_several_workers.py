"""Mistakes planted in the exercises of experiment 08, several workers."""


def _plan(rows: object, batches: object) -> str:
    return (
        f'plan = {{"per_device_train_batch_size": {rows}, '
        f'"gradient_accumulation_steps": {batches}}}'
    )


def _loss(value: str) -> str:
    return (
        "def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):\n"
        "    margin = (chosen - ref_chosen) - (rejected - ref_rejected)\n"
        f"    return {value}"
    )


WRONG_ANSWERS = {
    "check_batch": [
        (_plan(8, 12), "rows on each worker"),
        (_plan(12, 2), "12 rows at once do not fit"),
        (_plan(10, 2), "are 80 rows a step"),
        (_plan(6, 4), "the same step, but in 4 passes"),
        (_plan(8, 3.0), "a whole number as gradient_accumulation_steps"),
        (_plan(0, 3), "give 1 or more"),
        ('plan = {"gradient_accumulation_steps": 3}', "train_batch_size is missing"),
        ("plan = (8, 3)", "expected a dictionary"),
    ],
    "check_dpo_loss": [
        (_loss("math.log(1 / (1 + math.exp(-beta * margin)))"), "the sign is turned"),
        (_loss("math.log(1 + math.exp(beta * margin))"), "rewards the rejected"),
        (
            _loss("math.log(1 + math.exp(-beta * (chosen - rejected)))"),
            "the reference is missing",
        ),
        (_loss("math.log(1 + math.exp(-margin))"), "beta is missing"),
        (_loss("beta * math.log(1 + math.exp(-margin))"), "beta belongs within"),
        (_loss("1 / (1 + math.exp(-beta * margin))"), "the sigmoid itself"),
        (_loss("-beta * margin"), "compute the margin first"),
        (_loss("undefined"), "stops with NameError"),
        (_loss("None"), "returns nothing"),
        ("dpo_loss = 0.693", "expected a function"),
    ],
}
