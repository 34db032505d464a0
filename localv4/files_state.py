"""How far work on many files is: a download, or the check of one. Knows nothing of the work."""

from dataclasses import dataclass

__all__ = ["FilesState"]


@dataclass(frozen=True)
class FilesState:
    """How far it is.

    Attributes
    ----------
    n_done, n_files
        Files that are done, of all.
    here_bytes, n_bytes
        Bytes that are done, of all.
    received_bytes
        What this process received over the network, or read.
    n_checking
        Files whose checksum is being computed.
    n_elsewhere
        Files that another process fetches, where nothing else is left to do; 0 before.
    """

    n_done: int
    n_files: int
    here_bytes: int
    n_bytes: int
    received_bytes: int
    n_checking: int
    n_elsewhere: int
