"""What the asynchronous handler is compared with: the server gathers the requests.

Packed as `model.py` by bench_serving.py. All requests of a batch are continued by one
call of `generate`, and wait for its end. It answers well-formed requests only.
"""

import json

import torch
from djl_python import Output
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "### Instruction:\n{}\n\n### Response:\n"
loaded = None


def load(options):
    folder = options["model_dir"]
    base = AutoModelForCausalLM.from_pretrained(f"{folder}/{options['base_model']}")
    adapter = f"{folder}/{options['adapter_checkpoint']}"
    model = PeftModel.from_pretrained(base, adapter).eval()
    return model, AutoTokenizer.from_pretrained(adapter, padding_side="left")


def handle(inputs):
    global loaded
    if inputs.is_empty():
        loaded = load(inputs.get_properties())
        return None
    model, tokenizer = loaded
    bodies = [item.get_as_json() for item in inputs.get_batches()]
    asked = [PROMPT.format(body["inputs"]) for body in bodies]
    encoded = tokenizer(asked, return_tensors="pt", padding=True)
    encoded.pop("token_type_ids", None)
    tokens = max(body["parameters"]["max_new_tokens"] for body in bodies)
    with torch.inference_mode():
        made = model.generate(
            **encoded,
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
    answers = tokenizer.batch_decode(made[:, encoded["input_ids"].shape[1] :])
    output = Output()
    for place, (body, answer) in enumerate(zip(bodies, answers, strict=True)):
        reply = json.dumps({"generated_text": body["inputs"] + answer})
        is_batch = inputs.get_properties().get("batch_size", "").isdecimal()
        output.add(reply.encode(), batch_index=place if is_batch else None)
    return output.add_property("content-type", "application/json")
