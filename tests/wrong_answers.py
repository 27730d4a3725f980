"""Mistakes planted in the exercises, each with the hint that it must get.

Check function → (code that assigns a wrong answer, regular expression of its hint).
The code runs where the exercise stands, with all that the notebook has defined so far.
"""

WRONG_ANSWERS: dict[str, list[tuple[str, str]]] = {
    # 02_prompting
    "check_steering_prompt": [
        ('steering_prompt = "horse - stable\\nduck - "', "ends in white space"),
        ('steering_prompt = "cow - moo\\nduck -"', "'moo' is the sound of cow"),
        ('steering_prompt = "frog - pond\\nduck -"', "gives the answer away"),
        ('steering_prompt = "duck -"', "below an example"),
        ('steering_prompt = "dragon - cave\\nduck -"', "an animal of the lists"),
    ],
    "check_budget": [
        ("budget = round(sum(solution_lengths) / len(solution_lengths))", "average"),
        ("budget = 8", "cut off"),
        ("budget = 10_000", "does not stop by itself"),
    ],
    # 03_dataset_templating
    "check_record": [
        (
            'record = {"instruction": f"Classify: {review}", "response": "positive"}',
            "not happy",
        ),
        ('record = {"instruction": review, "response": "negative"}', "is no task"),
        (
            'record = {"instruction": "Is it good?", "response": "negative"}',
            "hold the review itself",
        ),
        (
            'record = {"instruction": f"Classify: {review}", '
            '"response": "It is negative."}',
            "learned as one word",
        ),
    ],
    "check_labels": [
        ("labels = prompt_ids + completion_ids", "learn to write questions"),
        ("labels = completion_ids", "the prompt needs labels"),
        (
            "labels = [-100] * (len(prompt_ids) - 1) + completion_ids + [-100]",
            "shifted by one",
        ),
        ("labels = [0] * len(prompt_ids) + completion_ids", "0 is a token"),
    ],
    "check_padding_share": [
        (
            "share = sum(batch_lengths) / (len(batch_lengths) * max(batch_lengths))",
            "share of real tokens",
        ),
        (
            "share = 100 - 100 * sum(batch_lengths) / "
            "(len(batch_lengths) * max(batch_lengths))",
            "a percentage",
        ),
        (
            "share = len(batch_lengths) * max(batch_lengths) - sum(batch_lengths)",
            "number of padding tokens",
        ),
    ],
    # 04_lora_training
    "check_lora_parameters": [
        ("count = sum(i * o for i, o in shapes)", "LoRA leaves those alone"),
        ("count = sum(rank * i for i, o in shapes)", "one of the two matrices"),
        ("count = sum(rank * i * o for i, o in shapes)", "are narrow"),
    ],
    "check_best_epoch": [
        (
            'best_epoch = min(r["eval_loss"] for r in history if "eval_loss" in r)',
            "that is the loss",
        ),
        ("best_epoch = settings.epochs + 5", "there is no epoch"),
    ],
    # 06_djl_deployment
    "check_serving_properties": [
        (
            'properties = """engine=python\\noption.base_model=base"""',
            "written with a capital",
        ),
        (
            'properties = "engine=Python\\noption.base_model=base \\n"',
            "ends in a space",
        ),
        (
            'properties = "engine=Python\\nbase_model=base\\n"',
            "write option.base_model",
        ),
        (
            'properties = "engine=Python\\noption.base_model=base\\n'
            'option.adapter_checkpoint=lora\\nbatch_size=4\\n"',
            "asynchronous mode",
        ),
    ],
    "check_payload": [
        (
            'payload = {"inputs": "Why?", "parameters": {"max_tokens": 20}}',
            "another service",
        ),
        (
            'payload = {"inputs": "Why?", "parameters": {"max_new_tokens": 20}}',
            "greedy",
        ),
        (
            'payload = {"inputs": "Why?", '
            '"parameters": {"max_new_tokens": 20, "temperature": 0.8}}',
            "give it a seed",
        ),
    ],
}
