"""Machines as `utils.machine` describes them, to choose settings for."""

from __future__ import annotations

from utils.machine import Machine

LAPTOP = Machine(None, 0.0, 0.0, bf16=False, threads=2)
XEON = Machine(None, 0.0, 0.0, bf16=True, threads=2)
T4 = Machine("Tesla T4", 15.8, 15.0, bf16=False, threads=4)
A10G = Machine("NVIDIA A10G", 23.7, 23.0, bf16=True, threads=4)
