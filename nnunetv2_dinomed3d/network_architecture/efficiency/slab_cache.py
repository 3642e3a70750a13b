"""Feature maps of slabs that a sliding window meets again.

nnU-Net's windows overlap by half along the slices too. A slab that lies in two windows is the same in both, and so are
its feature maps. They differ only at a window's ends, where ICE pads the slab with zeros.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from einops import rearrange
from torch import Tensor

CACHE_LIMIT = 10**9
"""Most bytes of feature maps that are kept."""


class SlabCache:
    """Feature maps, found by the voxels of their slab. Valid as long as the encoder's weights do not change.

    Args:
        limit: most bytes of maps; beyond, those that were met longest ago are dropped.

    Attributes:
        encoded: how many slabs were encoded.
    """

    def __init__(self, limit: int = CACHE_LIMIT) -> None:
        self.limit = limit
        self.encoded = 0
        self._maps: dict[Hashable, list[Tensor]] = {}  # longest ago first
        self._nbytes = 0
        self._factors = torch.empty(2, 0, dtype=torch.int64)

    def encode(self, keys: Sequence[Hashable], slabs: Tensor, encode: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """``encode(slabs)``; slabs with known keys are looked up instead.

        Args:
            keys: one for each slab, from `slab_keys`.
            slabs: ICE's embeddings of them, ``(n, ...)``.
            encode: makes maps ``(n, ...)`` of such.
        """
        first: dict[Hashable, int] = {}  # in the order of the slabs: of a window, the last ones are met again
        for index, key in enumerate(keys):
            if key not in self._maps:
                first.setdefault(key, index)
        found = {key: self._maps.pop(key) for key in dict.fromkeys(keys) if key not in first}
        if first:
            self.encoded += len(first)
            fresh = [level.unbind() for level in encode(slabs[list(first.values())])]
            # copies, so that each can be dropped on its own
            new = {key: [maps[i].clone() for maps in fresh] for i, key in enumerate(first)}
            self._nbytes += sum(_nbytes(maps) for maps in new.values())
            found |= new
        self._maps |= found
        while self._nbytes > self.limit:
            self._nbytes -= _nbytes(self._maps.pop(next(iter(self._maps))))
        return [torch.stack(level) for level in zip(*(found[key] for key in keys), strict=True)]

    def slab_keys(self, x: Tensor, slab_depth: int, pad_depth: bool) -> list[Hashable]:
        """A key for the slab of K slices around each slice.

        Args:
            x: ``(b, C, d, h, w)``.
            slab_depth: K.
            pad_depth: as for ICE; without it there are d - K + 1 slabs.
        """
        before, after = slab_depth // 2, slab_depth - 1 - slab_depth // 2
        keys: list[Hashable] = []
        for prints in self._fingerprints(x):
            padded = [None] * before + prints + [None] * after if pad_depth else prints
            slabs = (tuple(padded[i : i + slab_depth]) for i in range(len(padded) - slab_depth + 1))
            keys += [(*x.shape[3:], *slab) for slab in slabs]
        return keys

    def _fingerprints(self, x: Tensor) -> list[list]:
        """Two 64-bit sums of the bits of each slice, each value times a random factor."""
        values = rearrange(x.float(), "b c d h w -> b d (c h w)").contiguous().view(torch.int32)
        if self._factors.shape[1] != values.shape[-1] or self._factors.device != x.device:
            generator = torch.Generator().manual_seed(0)
            factors = torch.randint(-(2**63), 2**63 - 1, (2, values.shape[-1]), generator=generator)
            self._factors = factors.to(x.device)
        sums = [(values * factors).sum(-1) for factors in self._factors]
        return [list(zip(*(row.tolist() for row in rows), strict=True)) for rows in zip(*sums, strict=True)]


def _nbytes(maps: Sequence[Tensor]) -> int:
    return sum(level.nbytes for level in maps)
