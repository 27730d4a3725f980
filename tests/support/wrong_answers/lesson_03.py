"""Mistakes planted in the exercises of 03_dataset_templating."""

WRONG_ANSWERS = {
    "check_record": [
        (
            'record = {"instruction": f"Is this positive or negative? {review}", '
            '"response": "positive"}',
            "not happy",
        ),
        ('record = {"instruction": review, "response": "negative"}', "is no task"),
        (
            'record = {"instruction": "Is it good?", "response": "negative"}',
            "hold the review itself",
        ),
        (
            'record = {"instruction": f"Is this positive or negative? {review}", '
            '"response": "It is negative."}',
            "learned as one word",
        ),
        (
            'record = {"instruction": f"Is this positive or negative? {review}", '
            '"response": "non-negative"}',
            "to the letter",
        ),
        (
            'record = {"instruction": f"Classify: {review}", "response": "negative"}',
            "does not name the class",
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
    "check_replay_rows": [
        ("count = replay_share * n_train", "of the training rows"),
        ("count = n_train / (1 - replay_share)", "rows there are in all"),
        ("count = (1 - replay_share) * n_train", "leaves training rows out"),
        ("count = n_train * (1 - replay_share) / replay_share", "turned the shares"),
    ],
}
