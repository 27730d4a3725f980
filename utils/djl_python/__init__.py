"""A small stand-in for DJL Serving, so that a DJL artifact runs without its container.

The real package is found only inside the container image. This one answers requests as
DJL Serving 0.36.0 was recorded to answer them (tests/data/djl_conformance.json):

- `inputs`, `outputs`, `pair_list`, `async_utils`, `encode_decode`: what an entry point
  imports;
- `layout`: what an archive means to the server, and the rules by which it refuses one;
- `archives`: what an archive would do if it were unpacked, seen before it is;
- `worker`: the Python process that holds one copy of the model;
- `async_replies`: what becomes of a reply in asynchronous mode;
- `server`: the front end with `/ping` and `/invocations`, the queue and the batches;
- `process`: the whole as a process that is started, asked and stopped;
- `lmi_vllm`: the handler that the image brings for artifacts without code.

Serve an artifact from the command line:
`python -m utils.djl_python build/model.tar.gz --port 8080`.
"""

from __future__ import annotations

from .inputs import Input
from .outputs import Output
from .pair_list import PairList

__all__ = ["Input", "Output", "PairList"]
