"""Mistakes planted in the exercises of experiments/03_new_tokens."""

LORA = 'config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", {more})'

WRONG_ANSWERS = {
    "check_megabytes": [
        ("megabytes = vocabulary * width * 2", "these are bytes"),
        ("megabytes = vocabulary * width * 2 / 2**20", "these are mebibytes"),
        ("megabytes = vocabulary * width / 1e6", "each takes 2 bytes"),
        ("megabytes = 2 * vocabulary * width * 2 / 1e6", "1 such matrix"),
    ],
    "check_token_config": [
        (LORA.format(more="r=8"), "the new row of the input embedding is as it was"),
        (
            LORA.format(more='trainable_token_indices={"embed_in": [new_id - 1]}'),
            "is as it was",
        ),
        (
            LORA.format(more='modules_to_save=["embed_in"]'),
            "only the new one should|is as it was|numbers are trained",
        ),
    ],
}
