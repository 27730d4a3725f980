"""Helpers of the course; each module is named for what it does."""

from utils.machine import prepare_openmp

# Here, because PyTorch's OpenMP library reads its settings when it is loaded: whoever
# imports anything of `utils` first (notebooks, the endpoint's server, tests) gets them,
# and so do the processes that they start. It takes a tenth of a second.
prepare_openmp()
