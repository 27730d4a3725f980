"""A GGUF file with an untrained model of SmolLM2's kind, made in a moment."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
from gguf.quants import quantize
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HIDDEN, WIDE, LAYERS, HEADS, KEY_HEADS = 64, 96, 2, 2, 1
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXTS = [
    "Which shirts are there? There are red ones, and there are white ones.",
    "\n\n",
    "What is the limit? The limit is 15 minutes, and then it ends.",
]


def save_tiny_gguf(file: Path) -> Path:
    """Write linear layers in 4 bits (Q4_1) and embeddings in 8, as SmolLM2's file."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=352,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    ids = sorted(words.get_vocab(), key=words.token_to_id)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(ids))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(ids)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in ids])
    writer.add_token_merges(_merges(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = numpy.random.default_rng(0)

    def add(name: str, *shape: int, kind: str = "Q4_1") -> None:
        values = random.normal(0, 0.2, shape).astype(numpy.float32)
        if kind == "F32":
            writer.add_tensor(name, numpy.abs(values) + 0.5)
            return
        kind_id = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, quantize(values, kind_id), raw_dtype=kind_id)

    keys = HIDDEN // HEADS * KEY_HEADS
    add("token_embd.weight", len(ids), HIDDEN, kind="Q8_0")
    add("output_norm.weight", HIDDEN, kind="F32")
    for number in range(LAYERS):
        for name, *shape in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", keys, HIDDEN),
            ("attn_v", keys, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", WIDE, HIDDEN),
            ("ffn_up", WIDE, HIDDEN),
            ("ffn_down", HIDDEN, WIDE),
        ]:
            add(f"blk.{number}.{name}.weight", *shape)
        add(f"blk.{number}.attn_norm.weight", HIDDEN, kind="F32")
        add(f"blk.{number}.ffn_norm.weight", HIDDEN, kind="F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _merges(tokenizer: Tokenizer) -> list[str]:
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
