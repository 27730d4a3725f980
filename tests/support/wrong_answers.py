"""Mistakes planted in the exercises, each with the hint that it must get.

Check function → (code that assigns a wrong answer, regular expression of its hint).
The code runs where the exercise stands, with all that the notebook has defined so far.
"""

WRONG_ANSWERS: dict[str, list[tuple[str, str]]] = {
    # 01_language_models, first half
    "check_survivors": [
        ("survivors = top_p(scores, 0.9).isfinite().sum()", "top-p at temperature 1"),
        (
            "survivors = top_p(temperature(scores, 2.0), 0.9).isinf().sum()",
            "that many are cut off",
        ),
        (
            "survivors = top_p(temperature(scores, 2.0), 0.9).isfinite().sum() - 1",
            "one is missing",
        ),
        (
            "survivors = top_p(temperature(scores, 0.5), 0.9).isfinite().sum()",
            "multiplied by 2",
        ),
    ],
    "check_encode": [
        ("encode = learn_merges(counts, 4)", "expected a function"),
        (
            "def encode(word, merges):\n"
            "    symbols = list(word)\n"
            "    for pair in reversed(merges):\n"
            "        symbols = merge(symbols, pair)\n"
            "    return symbols",
            "the first merge of the list goes first",
        ),
        (
            "def encode(word, merges):\n"
            "    for pair in merges:\n"
            "        symbols = merge(list(word), pair)\n"
            "    return symbols if merges else list(word)",
            "keep each result",
        ),
        ("def encode(word, merges):\n    return merge(word, merges[0])", "IndexError"),
        ("def encode(word, merges):\n    return word", "returns str"),
    ],
    # 01_language_models, second half
    "check_attention_weights": [
        (
            "second_token = (dots / small_head_width**0.5).softmax(dim=-1)",
            "comes later",
        ),
        (
            "weights = (dots / small_head_width**0.5).softmax(dim=-1)\n"
            "second_token = [weights[0], weights[1], 0]",
            "mask before the softmax",
        ),
        (
            "second_token = torch.tensor([0.0, 1.0, 0.0]).softmax(dim=-1)",
            "use minus infinity",
        ),
        (
            "second_token = [*dots[:2].softmax(dim=-1).tolist(), 0.0]",
            "not scaled",
        ),
        (
            "second_token = [*(dots / small_head_width)[:2].softmax(dim=-1), 0.0]",
            "divide by its root",
        ),
        ("second_token = [0.27, 0.73]", "2 weights for 3 tokens"),
    ],
    "check_adaptation": [
        (
            'ways = {"prices": "fine-tune", "summaries": "prompt", '
            '"tickets": "fine-tune", "scripts": "pre-train"}',
            "last week's prices",
        ),
        (
            'ways = {"prices": "retrieve", "summaries": "pre-train", '
            '"tickets": "fine-tune", "scripts": "pre-train"}',
            "far cheaper",
        ),
        (
            'ways = {"prices": "retrieve", "summaries": "prompt", '
            '"tickets": "prompt", "scripts": "pre-train"}',
            "the long prompt is what costs",
        ),
        (
            'ways = {"prices": "RAG", "summaries": "prompt", '
            '"tickets": "prompt", "scripts": "pre-train"}',
            "is not one of",
        ),
    ],
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
    "check_guard": [
        ("guard = lambda text: True", "everything gets through"),
        ("guard = lambda text: False", "nothing gets through"),
        ("guard = str.isalpha", "'polar bear' is refused"),
        (r"guard = lambda text: '\n' not in text", "an order on one line"),
        (
            "guard = lambda text: len(text.split(' ')) < 3",
            "an example on a line of its own|gets through",
        ),
        ('guard = "duck"', "expected a function"),
    ],
    # 03_dataset_templating
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
    # 04_lora_training
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
    # 05_evaluation
    "check_held_out_loss": [
        (
            "loss_of_all = sum(batch_losses) / len(batch_losses)",
            "the mean of the batches",
        ),
        (
            "loss_of_all = sum(b * n for b, n in zip(batch_losses, batch_tokens))",
            "all tokens together",
        ),
        (
            "loss_of_all = sum(b * n for b, n in zip(batch_losses, batch_tokens)) "
            "/ len(batch_losses)",
            "not by the number of batches",
        ),
        (
            "import math\n"
            "total = sum(b * n for b, n in zip(batch_losses, batch_tokens))\n"
            "loss_of_all = math.exp(total / sum(batch_tokens))",
            "its logarithm",
        ),
    ],
    "check_token_f1": [
        (
            "def f1(answer, expected):\n"
            "    found, wanted = set(words(answer)), set(words(expected))\n"
            "    shared = len(found & wanted)\n"
            "    return 2 * shared / (len(found) + len(wanted))",
            "shares one word",
        ),
        (
            "def f1(answer, expected):\n"
            "    found, wanted = words(answer), words(expected)\n"
            "    return sum(word in wanted for word in found) / len(found)",
            "precision alone",
        ),
        (
            "def f1(answer, expected):\n"
            "    found, wanted = words(answer), words(expected)\n"
            "    return sum(word in found for word in wanted) / len(wanted)",
            "recall alone",
        ),
        (
            "def f1(answer, expected):\n"
            "    found, wanted = answer.split(), expected.split()\n"
            "    shared = sum((Counter(found) & Counter(wanted)).values())\n"
            "    return 2 * shared / (len(found) + len(wanted))",
            "use `words`",
        ),
        (
            "def f1(answer, expected):\n"
            "    found, wanted = words(answer), words(expected)\n"
            "    shared = sum((Counter(found) & Counter(wanted)).values())\n"
            "    p, r = shared / len(found), shared / len(wanted)\n"
            "    return 2 * p * r / (p + r)",
            "before you divide",
        ),
        ('f1 = "both"', "expected a function"),
    ],
    "check_votes": [
        ('votes = ["A", "B"]', "give each pair one"),
        ('votes = ["tuned"] * len(pairs)', "name the side"),
        ('votes = ["left"] * len(pairs)', "it can be 'A', 'B' or '='"),
        ('votes = ["A"] * len(pairs)', "prefers nobody"),
    ],
    "check_questions": [
        (
            "n_questions = questions_needed("
            "np.std(differences) / len(differences) ** 0.5, 0.05)",
            "standard error",
        ),
        ("n_questions = questions_needed(np.var(differences), 0.05)", "the variance"),
        ("n_questions = questions_needed(np.std(differences), 5)", "five points"),
        ("n_questions = len(differences)", "standard deviation of `differences`"),
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
        (
            'properties = "engine=Python\\noption.rolling_batch=disable\\n'
            "option.base_model=base\\noption.adapter_checkpoint=lora\\nbatch_size=4\\n"
            'option.entryPoint=other.py\\n"',
            "other.py is not in the archive",
        ),
        (
            'properties = "engine=Python\\noption.rolling_batch=disable\\n'
            "option.base_model=base\\noption.adapter_checkpoint=lora\\nbatch_size=4\\n"
            'option.async_mode=true\\n"',
            "option.async_mode=true switches on",
        ),
    ],
    "check_forgotten_endpoint": [
        ("cost = 14 * price", "Sunday are billed too"),
        ("cost = 48 * price", "Friday evening"),
        ("cost = 62", "each has a price"),
        ("cost = 0.003", "not the questions are billed"),
        ("cost = 50 * price", "would be 50.0 hours"),
        ("cost = 'much'", "expected|a number|an amount"),
    ],
    "check_payload": [
        (
            'payload = {"inputs": question, "parameters": {"max_tokens": 20}}',
            "another service",
        ),
        (
            'payload = {"inputs": question, "parameters": {"max_new_tokens": 20}}',
            "this is greedy",
        ),
        (
            'payload = {"inputs": question, '
            '"parameters": {"max_new_tokens": 20, "temperature": 0.8}}',
            "give it a seed",
        ),
        (
            'payload = {"inputs": "Why?", '
            '"parameters": {"max_new_tokens": 20, "temperature": 0.8, "seed": 7}}',
            "holds the question",
        ),
        (
            'payload = {"inputs": question, '
            '"parameters": {"max_new_tokens": 20, "do_sample": False, "seed": 7}}',
            "do_sample=False is greedy",
        ),
        (
            'payload = {"inputs": question, '
            '"parameters": {"max_new_tokens": 20, "temperature": None, "seed": 7}}',
            "counts as not given",
        ),
        (
            'payload = {"inputs": question, '
            '"parameters": {"max_new_tokens": 20, "top_k": 1, "seed": 7}}',
            "top_k=1 leaves next to nothing",
        ),
        (
            'payload = {"inputs": question, '
            '"parameters": {"max_new_tokens": 64, "temperature": 0.8, "seed": 7}}',
            "from 1 to 20",
        ),
    ],
}
