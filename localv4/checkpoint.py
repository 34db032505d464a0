"""A checkpoint's folder: validated once, then read-only views of its memory maps.

Opening compares every tensor with the contract of :mod:`localv4.tensors`; formats are decided by
the tensors' dtypes, never by the model's name. Nothing is copied, and nothing is ever executed:
only config.json, the index and safetensors files are opened. Follows the spec's checkpoint layout
("How a loader should decide") and revisions. Knows nothing of what the weights compute.
"""

import contextlib
import gc
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from localv4.checkpoint_contract import Contract, match_contract
from localv4.config import ModelConfig
from localv4.errors import DamagedCheckpoint, ModelNotFound
from localv4.shards import Shard, TensorInfo
from localv4.tensors import ExpertFormat, ScaleDtype, block_prefix

__all__ = ["Checkpoint", "TensorInfo", "refuse_non_finite", "view_tensor"]

# What a view holds: the codes of small floats, the bits of BF16.
_VIEW_DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E8M0": np.dtype(np.uint8),
    "I64": np.dtype("<i8"),
    "I8": np.dtype(np.uint8),
}


def view_tensor(
    info: TensorInfo, memory: mmap.mmap | NDArray[np.uint8], offset: int
) -> NDArray[Any]:
    """Return a tensor's values where its bytes lie in some memory; see `Checkpoint.view`."""
    return np.ndarray(info.shape, _VIEW_DTYPES[info.dtype], buffer=memory, offset=offset)


def refuse_non_finite(values: NDArray[Any], info: TensorInfo, folder: Path) -> None:
    """Raise DamagedCheckpoint for NaN or infinity; see `Checkpoint.check_finite`."""
    if info.dtype == "F32":
        bad = ~np.isfinite(values)
    elif info.dtype == "BF16":
        bad = (values & 0x7F80) == 0x7F80
    else:
        bad = values == 255
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DamagedCheckpoint(
            f"{folder / info.shard}: row {row} of {info.name} holds NaN or infinity; download the "
            "file again"
        )


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Let no garbage be looked for while a hundred thousand objects are made that all stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Checkpoint:
    """An open checkpoint; a context manager.

    Made by :meth:`open`. A shard that another program shortens while it is open cannot be guarded
    against: reading the lost part of a memory map ends the process (SIGBUS). Replacing a file by
    renaming another over it, as downloaders do, is harmless.

    Attributes
    ----------
    path
        The folder.
    config
        Its validated config.json.
    tensors
        Every tensor of the contract, by name.
    expert_format
        "fp4" (packed E2M1 and a scale for 32 columns) or "fp8" (E4M3 and 128 x 128 blocks).
    scale_dtype
        "F8_E8M0" or "F32", for all ``.scale`` tensors alike.
    has_mtp
        Whether there is an MTP block that localv4 can run.
    lacks_mtp
        Whether such a block is listed but its files are not all here: a download without it.
    unread
        Names of listed tensors that are left alone: a DSpark drafter, unknown ``mtp.*``, an MTP
        block that is not here.
    unread_bytes
        Their bytes according to the index; None if it doesn't say.
    """

    def __init__(
        self, path: Path, config: ModelConfig, contract: Contract, unread_bytes: int | None
    ) -> None:
        self.path = path
        self.config = config
        self.tensors: Mapping[str, TensorInfo] = contract.tensors
        self.expert_format: ExpertFormat = contract.expert_format
        self.scale_dtype: ScaleDtype = contract.scale_dtype
        self.has_mtp = contract.has_mtp
        self.lacks_mtp = contract.lacks_mtp
        self.unread = contract.unread
        self.unread_bytes = unread_bytes
        self._shards: dict[str, Shard] = dict(contract.shards)

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Open and validate a folder: names, shapes, dtypes, bounds and routing tables.

        Takes some tenths of a second for 69,187 tensors and reads no weights but routing tables.

        Raises
        ------
        ModelNotFound
            If it is not a folder with a config.json and safetensors files.
        DamagedCheckpoint
            If files are missing, truncated, or contradict themselves, each other or config.json.
        UnsupportedModel
            If it is sound but not a DeepSeek-V4 that localv4 runs.
        """
        path = Path(path)
        if not path.is_dir():
            raise ModelNotFound(f"{path} is not a folder; name the folder of a checkpoint")
        config = ModelConfig.from_folder(path)
        with _without_collector():
            contract = match_contract(path, config)
        unread_bytes = None if contract.total_bytes is None else 0
        if contract.total_bytes is not None and contract.unread:
            read_bytes = sum(tensor.nbytes for tensor in contract.tensors.values())
            unread_bytes = max(contract.total_bytes - read_bytes, 0)
        checkpoint = cls(path, config, contract, unread_bytes)
        try:
            checkpoint._check_routing_tables()
        except BaseException:
            checkpoint.close()
            raise
        return checkpoint

    def view(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only view of the memory map; nothing is copied.

        Parameters
        ----------
        name
            A name of `tensors`.

        Returns
        -------
        ndarray of the stored shape
            uint8 for F8_E4M3, F8_E8M0 and I8; uint16 for BF16; float32; int64. It may be unaligned
            and stays valid after :meth:`close` for as long as it is referenced.
        """
        info = self.tensors[name]
        return view_tensor(info, self._shards[info.shard].map, info.offset)

    def check_finite(self, name: str) -> None:
        """Refuse a scale, BF16 or F32 tensor that holds NaN or infinity; costs one pass over it.

        Not done by :meth:`open`, which would read every scale of the checkpoint: whoever binds a
        layer's weights calls it.

        Raises
        ------
        DamagedCheckpoint
            Naming the tensor and the first bad row: byte 255 of F8_E8M0, a non-finite F32 or BF16.
        """
        refuse_non_finite(self.view(name), self.tensors[name], self.path)

    def close(self) -> None:
        """Let go of the maps; those that views still refer to live as long as the views."""
        # Not mmap.close(), which refuses while a view exists: the last reference unmaps.
        self._shards.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _check_routing_tables(self) -> None:
        """Refuse token-to-expert tables that name an expert that isn't there."""
        n_experts = self.config.n_routed_experts
        for layer in range(self.config.num_hash_layers):
            name = f"{block_prefix(self.config, layer)}ffn.gate.tid2eid"
            table = self.view(name)
            bad = (table < 0) | (table >= n_experts)
            if bad.any():
                token, slot = (int(number) for number in np.argwhere(bad)[0])
                raise DamagedCheckpoint(
                    f"{name} sends token {token} to expert {int(table[token, slot])} of "
                    f"{n_experts}; download {self.path / self.tensors[name].shard} again"
                )
