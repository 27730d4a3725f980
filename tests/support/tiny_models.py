"""Tokenizers, a GPT-NeoX and a Llama, made in a moment: for tests without training."""

from __future__ import annotations

import copy
import functools

from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from utils.helpers import END_KEY, INSTRUCTION_KEY, PROMPT, RESPONSE_KEY_NL

END_OF_TEXT = "<|endoftext|>"
SENTENCES = [
    PROMPT,
    "What does Amazon SageMaker Feature Store keep? It keeps features for models.",
    "Which security measures are there? Encryption at rest and in transit.",
]


def _byte_level(texts: list[str], special: list[str], adds_bos: bool) -> Tokenizer:
    """Return a byte-level BPE of 400 tokens, which may put <s> before every text."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.train_from_iterator(
        texts,
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
    return model


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
    model = _byte_level(SENTENCES, special, adds_bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=END_OF_TEXT,
        bos_token="<s>" if adds_bos else END_OF_TEXT,
        pad_token=pad,
        padding_side="right",
    )


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Chat templates of the kinds that models bring, in few words: what is special of each,
# its special tokens (the end of text first), and whether the tokenizer adds <s>.
CHATS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    # SmolLM2's: a system turn of its own where a chat brings none.
    "names itself": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
        "helpful AI assistant named Tiny<|im_end|>\n' }}{% endif %}" + CHATML,
        ("<|im_end|>", "<|im_start|>"),
        False,
    ),
    "plain": (CHATML, ("<|im_end|>", "<|im_start|>"), False),
    # Gemma's: no system turn, trimmed texts, an end of turn that is no end of text.
    "refuses a system turn": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'user') != "
        "(loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
        "{% endif %}{% set role = 'model' if message['role'] == 'assistant' else "
        "'user' %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
        "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<eos>", "<start_of_turn>", "<end_of_turn>"),
        True,
    ),
    # Zephyr's: its marks are ordinary text, and it does not write the <s> that the
    # tokenizer adds.
    "marks in text": (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + "
        "message['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        ("</s>",),
        True,
    ),
    # Llama 2's: nothing but [/INST] begins an answer.
    "instructions in brackets": (
        "{% if messages[0]['role'] == 'system' %}{% set start = '<<SYS>>\n' + "
        "messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}"
        "{% else %}{% set start = '' %}{% endif %}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (start if "
        "loop.first else '') + message['content'] + ' [/INST]' }}{% else %}"
        "{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("</s>",),
        True,
    ),
}


@functools.cache
def tiny_chat_tokenizer(kind: str = "names itself") -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template. Cached: copy it before you change it.

    Args:
        kind: of template, one of `CHATS`. Padding is the end of text, as SmolLM2's.
    """
    source, special, adds_bos = CHATS[kind]
    texts = [*SENTENCES, "system user assistant model Notes: Question: Answer"]
    model = _byte_level(texts, [*special, "<s>"], adds_bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=special[0],
        bos_token="<s>" if adds_bos else special[-1],
        pad_token=special[0],
        padding_side="right",
        chat_template=source,
    )


def tiny_llama(
    vocabulary: int = 400,
    tied: bool = True,
    tokenizer: PreTrainedTokenizerFast | None = None,
    width: int = 32,
) -> LlamaForCausalLM:
    """An untrained Llama of SmolLM2's kind; the caller seeds torch.

    Args:
        vocabulary: how many tokens.
        tied: one matrix for embeddings and head.
        tokenizer: gives vocabulary and special tokens, in place of `vocabulary`.
        width: of the hidden states; half of it is that of keys and values.
    """
    ids = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    if tokenizer is not None:
        vocabulary = len(tokenizer)
        ids = {name: getattr(tokenizer, name) for name in ids}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=2 * width,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            **ids,
        )
    )


def narrow_llama(config: LlamaConfig) -> LlamaForCausalLM:
    """An untrained Llama as deep as another, with its heads and vocabulary, but narrow.

    What a lesson looks up by number, a layer or a head, exists here too. The caller
    seeds torch.

    Args:
        config: of the model that it stands in for; not changed.
    """
    config = copy.deepcopy(config)
    config.head_dim = 8
    config.hidden_size = config.head_dim * config.num_attention_heads
    config.intermediate_size = 2 * config.hidden_size
    config.initializer_range = 0.2
    return LlamaForCausalLM(config)


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


def parameter_counts(model: PreTrainedModel | PeftModel) -> tuple[int, int]:
    """Return how many parameters are trained, and how many there are."""
    sizes = [(p.requires_grad, p.numel()) for p in model.parameters()]
    return sum(n for trained, n in sizes if trained), sum(n for _, n in sizes)
