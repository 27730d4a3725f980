"""Stand-ins for the handlers that the image brings for artifacts without code.

- `vllm_async_service`: the one that the course's artifact names; here without vLLM.
"""
