"""What the container image of the course has, and what its vLLM serves.

The image is djl-inference:0.36.0-lmi27.0.0-cu130; its vLLM is version 0.23. Nothing of
this was run on a GPU. Where each fact was read stands beside it.
"""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


VLLM_VERSION = "0.23"
# The least that the image holds (djl-serving, lmi-container-requirements.txt).
IMAGE_VERSIONS = {"torch": "2.11.0", "transformers": "4.56", "peft": "0.19.1"}
# Packages of the image that an entry point may import, beside Python's own.
IN_IMAGE = words(
    """
    djl_python torch transformers peft tokenizers safetensors huggingface_hub accelerate
    numpy scipy pandas PIL requests urllib3 yaml tqdm packaging filelock sentencepiece
    protobuf google einops vllm boto3 botocore datasets regex jinja2 pydantic psutil
    pyarrow fastapi aiohttp typing_extensions
    """
)
# The values of max_lora_rank that vLLM takes (`MaxLoRARanks`, vllm/config/lora.py).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
LORA_RANK_LIMIT = 16  # where no option says otherwise (same file)
# Without a tick for LoRA in vLLM's docs/models/supported_models.md, in January 2026 as
# in a later version of the page: such a model ends with "… does not support LoRA yet"
# (vllm/v1/worker/lora_model_runner_mixin.py).
WITHOUT_LORA = words(
    """
    ArcticForCausalLM BloomForCausalLM DbrxForCausalLM FalconForCausalLM
    FalconMambaForCausalLM FlexOlmoForCausalLM Gemma3nForCausalLM GPT2LMHeadModel
    GPTJForCausalLM GPTNeoXForCausalLM IQuestCoderForCausalLM IQuestLoopCoderForCausalLM
    Jais2ForCausalLM KimiLinearForCausalLM MambaForCausalLM Mamba2ForCausalLM
    MiMoV2FlashForCausalLM MPTForCausalLM OlmoeForCausalLM OrionForCausalLM
    StableLmForCausalLM Zamba2ForCausalLM
    """
)
# What vLLM refuses or leaves out of an adapter (vllm/lora/peft_helper.py): the key of
# adapter_config.json, what it means there, and whether vLLM says so.
LORA_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "layers trained as a whole beside LoRA (modules_to_save)",
    "bias": "trained biases",
}
LORA_IGNORED = {"trainable_token_indices": "rows trained in the embedding"}
# Ways of storing a base that vLLM reads itself (its page "Quantization"). It reads
# bitsandbytes, too, with the package of that name, which is not in the image's list;
# nor is any package by which transformers would read a quantised base.
VLLM_QUANTISED = words("gptq awq fp8 compressed-tensors mxfp4")


def least_rank(rank: int) -> int | None:
    """Return the least max_lora_rank that vLLM takes for a rank; None above all."""
    return next((allowed for allowed in LORA_RANKS if allowed >= rank), None)
