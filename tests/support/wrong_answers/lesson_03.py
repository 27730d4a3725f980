"""Mistakes planted in the exercises of 03_dataset_templating."""

COLLATE = """\
def my_collate(rows):
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    input_ids = pad_sequence(ids, batch_first=True, padding_value=PAD{ids_side})
    mask = pad_sequence(
        [torch.ones_like(row) for row in ids], batch_first=True, padding_value={mask}
    )
    labels = pad_sequence(labels, batch_first=True, padding_value={labels})
    return {{"input_ids": input_ids, "attention_mask": mask, "labels": labels}}

answer = my_collate
"""
HOLD_OUT = """\
def hold_out(rows, seed):
    groups = sorted({{row["group"] for row in rows}})
    random.Random({seed}).shuffle(groups)
    held = set(groups[: round({share} * len(groups))])
    test = [row for row in rows if row["group"] in held]
    return [row for row in rows if {train}], test

answer = hold_out
"""
NOT_HELD = 'row["group"] not in held'

WRONG_ANSWERS = {
    "check_labels": [
        ("labels = prompt_ids + completion_ids", "learn to write questions"),
        ("labels = completion_ids", "the prompt needs labels"),
        (
            "labels = [-100] * (len(prompt_ids) - 1) + completion_ids + [-100]",
            "shifted by one",
        ),
        ("labels = [0] * len(prompt_ids) + completion_ids", "0 is a token"),
    ],
    "check_collate": [
        ("answer = my_collate", "compare nothing"),
        (COLLATE.format(ids_side="", mask=0, labels="PAD"), "the loss sees padding"),
        ("answer = my_collate(few)", "without brackets"),
        (
            COLLATE.format(ids_side="", mask=1, labels=-100),
            "is 1 over padding",
        ),
        (
            COLLATE.format(ids_side=', padding_side="left"', mask=0, labels=-100),
            "on the same side",
        ),
        (
            COLLATE.format(ids_side="", mask=0, labels=-100).replace("PAD", "-100"),
            "no token has the id -100",
        ),
    ],
    "check_hold_out": [
        ("answer = hold_out", "that is trained, such as"),
        (
            HOLD_OUT.format(seed="seed", share=0.5, train=NOT_HELD),
            "are held out: make it about",
        ),
        (
            HOLD_OUT.format(seed="seed", share=0.2, train="True"),
            "exactly one part",
        ),
        (
            HOLD_OUT.format(seed="0", share=0.2, train=NOT_HELD),
            "another seed gives the same split",
        ),
    ],
}
