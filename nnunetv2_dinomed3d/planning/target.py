"""The memory that is planned for. Light: the command line looks at it before PyTorch is imported."""

DEFAULT_GB = 24.0
"""Memory of common cards for workstations, taken where no GPU is visible."""

LARGEST_GB = 10_000.0
"""More is a slip, such as bytes or megabytes."""


def require_memory(gb: float | None) -> None:
    """Refuse what is no GPU's memory.

    Raises:
        ValueError: it is no number, not positive or absurd; None, which is not given, is fine.
    """
    if gb is not None and not 0 < gb <= LARGEST_GB:
        raise ValueError(f"-gpu_memory_target is {gb}; it is the memory of one GPU in GB, such as 24.")


def require_gpu(visible: float | None, gb: float | None) -> None:
    """Refuse to measure where that says nothing about the GPU that is planned for.

    Args:
        visible: memory of the visible GPU in GB; None where there is none.
        gb: the memory that is planned for; None for the visible GPU's.

    Raises:
        ValueError: there is no GPU, or it is smaller.
    """
    if visible is None:
        raise ValueError("--measure runs training steps on a GPU, and PyTorch sees none. Leave it out for an estimate.")
    if gb is not None and gb > visible:
        raise ValueError(
            f"-gpu_memory_target is {gb:g}, and --measure runs on a GPU of {visible:.1f} GB: it cannot measure what is "
            "larger. Leave one of them out."
        )
