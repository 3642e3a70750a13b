"""Logits are resampled row by row to what nnU-Net's function gives for all of them at once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from benchmarks.random_models import RESAMPLING, configuration
from nnunetv2_dinomed3d.prediction.resampling import (
    Give,
    ResampledRows,
    RowResampler,
    Rows,
    WholeResampler,
    sampling_of,
)

Spacings = tuple[Sequence[float], Sequence[float]]
ISOTROPIC: Spacings = ((1, 1, 1), (0.8, 1.1, 0.7))
THICK: Spacings = ((4, 1, 1), (5, 0.8, 0.9))
THICK_ALONG_Y: Spacings = ((1, 4, 1), (0.8, 5, 0.9))
THICK_ALONG_X: Spacings = ((1, 1, 4), (0.8, 0.9, 5))
SLICES: Spacings = ((7, 1, 1), (7, 0.9, 0.8))


def manager(function: str = "resample_data_or_seg_to_shape", **options: Any) -> ConfigurationManager:
    made = configuration((1, 1, 1), (8, 8, 8))
    defaults = RESAMPLING if function == "resample_data_or_seg_to_shape" else {"is_seg": False}
    made |= {"resampling_fn_probabilities": function, "resampling_fn_probabilities_kwargs": {**defaults, **options}}
    return ConfigurationManager(made)


def row_by_row(logits: Tensor, counts: Sequence[int], make: Callable[[Give], Rows]) -> list[ResampledRows]:
    """Give logits in so many rows at a time to a resampler that `make` builds; what it gave out, in order."""
    given: list[ResampledRows] = []

    def give(rows: ResampledRows) -> None:
        assert rows.first == sum(part.logits.shape[1] for part in given)
        assert rows.logits.dtype == torch.float32
        given.append(rows)

    resampler, first = make(give), 0
    for count in counts:
        resampler(first, logits[:, first : first + count])
        first += count
    assert first == logits.shape[1]
    return given


def together(rows: Sequence[ResampledRows]) -> np.ndarray:
    return torch.cat([part.logits for part in rows], 1).numpy()


@pytest.mark.parametrize("spacings", [ISOTROPIC, THICK, THICK_ALONG_Y, THICK_ALONG_X, SLICES])
@pytest.mark.parametrize("target", [(21, 17, 13), (5, 9, 22), (12, 9, 11), (12, 20, 11), (30, 10, 11)])
@pytest.mark.parametrize("counts", [(12,), (1, 4, 7)])
def test_it_is_nnunets_own(spacings: Spacings, target: tuple[int, int, int], counts: Sequence[int]) -> None:
    logits = torch.randn(3, 12, 10, 11, generator=torch.manual_seed(0)).half()
    plans = manager()
    expected = plans.resampling_fn_probabilities(logits.numpy(), target, *spacings)
    sampling = sampling_of(plans, (12, 10, 11), target, spacings)
    assert sampling is not None
    rows = row_by_row(logits, counts, lambda give: RowResampler(sampling, give, chunk_bytes=10_000))
    assert together(rows).shape == expected.shape
    np.testing.assert_allclose(together(rows), expected.astype(np.float32), rtol=1e-3, atol=1e-4)
    for part in rows:
        mask = torch.rand(part.logits.shape[1:]) < 0.5
        assert part.exact is not None
        assert 0 < part.error < 1e-3
        own = torch.from_numpy(expected[:, part.first : part.first + part.logits.shape[1]])[:, mask]
        assert torch.equal(part.exact(mask), own.float())


@pytest.mark.parametrize("spacings", [ISOTROPIC, THICK, THICK_ALONG_Y])
def test_it_is_nnunets_torch_function(spacings: Spacings) -> None:
    logits = torch.randn(3, 12, 10, 11, generator=torch.manual_seed(0)).half()
    plans, target = manager("resample_torch_fornnunet"), (21, 17, 13)
    expected = plans.resampling_fn_probabilities(logits.numpy(), target, *spacings)
    sampling = sampling_of(plans, (12, 10, 11), target, spacings)
    assert sampling is not None
    rows = row_by_row(logits, (5, 7), lambda give: RowResampler(sampling, give))
    np.testing.assert_allclose(together(rows), np.asarray(expected, np.float32), rtol=1e-5, atol=1e-5)


def test_equal_shapes_stay_as_they_are() -> None:
    logits = torch.randn(3, 6, 5, 5).half()
    sampling = sampling_of(manager(), (6, 5, 5), (6, 5, 5), ISOTROPIC)
    assert sampling is not None
    rows = row_by_row(logits, (4, 2), lambda give: RowResampler(sampling, give))
    np.testing.assert_array_equal(together(rows), logits.float())
    assert all(part.exact is None for part in rows)


def test_only_rows_that_are_needed_are_kept() -> None:
    """The memory of a case does not grow with its rows."""
    sampling = sampling_of(manager(), (400, 4, 4), (1200, 5, 5), ISOTROPIC)
    assert sampling is not None
    rows: list[int] = []
    resampler = RowResampler(sampling, lambda part: rows.append(part.logits.shape[1]))
    for first in range(0, 400, 8):
        resampler(first, torch.zeros(2, 8, 4, 4, dtype=torch.half))
        assert resampler.kept is not None
        assert resampler.kept.shape[1] <= 2
    assert sum(rows) == 1200


@pytest.mark.parametrize(
    "options", [{"order": 3}, {"order_z": 1}, {"is_seg": True}, {"something": 1}, {"order": 0}], ids=str
)
def test_other_options_are_left_to_nnunet(options: dict[str, Any]) -> None:
    assert sampling_of(manager(**options), (4, 4, 4), (8, 8, 8), ISOTROPIC) is None


def test_other_functions_are_called_with_all_logits() -> None:
    assert sampling_of(manager("no_resampling_hack"), (4, 4, 4), (8, 8, 8), ISOTROPIC) is None
    logits, called = torch.randn(2, 6, 3, 3).half(), []

    def resample(whole: np.ndarray) -> np.ndarray:
        called.append(whole.dtype)
        return whole[:, ::2]

    whole = torch.zeros_like(logits)
    found = row_by_row(logits, (2, 4), lambda give: WholeResampler(whole, resample, give))
    np.testing.assert_array_equal(together(found), logits[:, ::2].float())
    assert called == [np.float16]
