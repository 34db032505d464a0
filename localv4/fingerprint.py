"""What tells one checkpoint from another: its sizes, its tensors and some of their bytes.

Reading all of 160 GB to be sure would cost more than the prefill that a saved session spares.
"""

import hashlib
import json
from dataclasses import asdict

import numpy as np

from localv4.checkpoint import Checkpoint

__all__ = ["fingerprint"]

_SAMPLES = 64  # tensors of which some bytes count, evenly among all names
_SAMPLE_BYTES = 256


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return the SHA-256, in hex, of the config, all tensors' shapes and samples of weights."""
    digest = hashlib.sha256(json.dumps(asdict(checkpoint.config), default=str).encode())
    names = sorted(checkpoint.tensors)
    for name in names:
        tensor = checkpoint.tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
    for name in ("embed.weight", "head.weight", *names[:: max(len(names) // _SAMPLES, 1)]):
        digest.update(checkpoint.view(name).reshape(-1).view(np.uint8)[:_SAMPLE_BYTES].data)
    return digest.hexdigest()
