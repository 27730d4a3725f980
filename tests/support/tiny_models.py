"""A tokenizer and a GPT-NeoX, made in a moment: for tests without a trained model."""

from __future__ import annotations

import functools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from utils.helpers import END_KEY, INSTRUCTION_KEY, PROMPT, RESPONSE_KEY_NL

END_OF_TEXT = "<|endoftext|>"
SENTENCES = [
    PROMPT,
    "What does Amazon SageMaker Feature Store keep? It keeps features for models.",
    "Which security measures are there? Encryption at rest and in transit.",
]


@functools.cache
def tiny_tokenizer(
    key_tokens: bool = True, adds_bos: bool = False, pad: str = END_OF_TEXT
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer. Cached: copy it before you change it.

    Args:
        key_tokens: the template's keys are single tokens, as in Dolly's tokenizer.
        adds_bos: it puts <s> before every text, as Llama's does.
        pad: the padding token.
    """
    special = [END_OF_TEXT, "<s>", "<pad>"]
    if key_tokens:
        special += [END_KEY, INSTRUCTION_KEY, RESPONSE_KEY_NL]
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if adds_bos:
        model.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", model.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=END_OF_TEXT,
        bos_token="<s>" if adds_bos else END_OF_TEXT,
        pad_token=pad,
        padding_side="right",
    )


def tiny_gpt_neox(
    vocabulary: int = 400, layers: int = 2, tied: bool = True
) -> GPTNeoXForCausalLM:
    """An untrained GPT-NeoX of the lab model's kind; the caller seeds torch.

    With embeddings that are not tied its answers vary more.
    """
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
