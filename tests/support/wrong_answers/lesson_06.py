"""Mistakes planted in the exercises of 06_djl_deployment."""

WRONG_ANSWERS = {
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
        ("cost = 'much'", "expected an amount in US dollars"),
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
