"""Prediction of cases: reading, windows, resampling and writing, each while the others go on."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from tqdm import tqdm

from nnunetv2_dinomed3d.prediction.cases import Case, Preprocessed, read_ahead
from nnunetv2_dinomed3d.prediction.model import Folds
from nnunetv2_dinomed3d.prediction.output import CaseOutput, FoldMean, array_for
from nnunetv2_dinomed3d.prediction.resampling import Give, RowResampler, Rows, WholeResampler, sampling_of
from nnunetv2_dinomed3d.prediction.rolling import RollingLogits
from nnunetv2_dinomed3d.prediction.windows import Sweep, layers_of, mirrorings, windows_at_once
from nnunetv2_dinomed3d.text import printable


@dataclass(frozen=True)
class Resources:
    """What prediction may take.

    Attributes:
        memory: bytes; a quarter each is for cases read ahead, logits that wait to be added, feature maps of slabs, and
            arrays of a whole case (folds' logits, probabilities), which go to a file where they are larger.
        readers, writers: threads; with 0 nothing is read ahead, or written beside.
    """

    memory: int
    readers: int = 3
    writers: int = 3

    @property
    def part(self) -> int:
        """Bytes for one of the four."""
        return self.memory // 4


class CasePredictor:
    """Predicts preprocessed cases with a model.

    Args:
        predictor: nnU-Net's, filled by `model.load_model`.
        folder: of the output; also of arrays that are too large for the memory.
        resources: what may be taken.
        save_probabilities: whether they are made too.
        progress: whether a bar is shown for each case.
    """

    def __init__(
        self,
        predictor: nnUNetPredictor,
        folder: Path,
        resources: Resources,
        *,
        save_probabilities: bool = False,
        progress: bool = False,
    ) -> None:
        self.predictor, self.folder, self.resources = predictor, folder, resources
        self.save_probabilities, self.progress = save_probabilities, progress
        self.folds = Folds(predictor)
        self.heads: int = predictor.label_manager.num_segmentation_heads

    @torch.inference_mode()
    def predict(self, preprocessed: Preprocessed) -> CaseOutput:
        """Segmentation of a case, and its probabilities if they are wanted.

        Raises:
            RuntimeError: the network or its logits fail, or memory does not suffice.
        """
        predictor = self.predictor
        try:
            return self._predict(preprocessed, predictor.device if predictor.perform_everything_on_device else None)
        except torch.OutOfMemoryError:
            if not predictor.perform_everything_on_device:
                raise
        print(f"{printable(preprocessed.case.name)}: the GPU's memory is too small for the sums; they go to the CPU.")
        torch.cuda.empty_cache()
        return self._predict(preprocessed, None)

    def _predict(self, preprocessed: Preprocessed, device: torch.device | None) -> CaseOutput:
        predictor, sums_on = self.predictor, device or torch.device("cpu")
        patch: list[int] = predictor.configuration_manager.patch_size
        image, inside = pad_nd_image(preprocessed.image, patch, "constant", {"value": 0}, True, None)
        image = image.to(sums_on)
        layers = layers_of(predictor._internal_get_sliding_window_slicers(image.shape[1:]))
        mirrored = mirrorings(predictor.allowed_mirroring_axes if predictor.use_mirroring else None)
        gaussian = compute_gaussian(tuple(patch), sigma_scale=1.0 / 8, value_scaling_factor=10, device=sums_on)
        output, mean = self._output(preprocessed)
        passes = len(self.folds) * len(mirrored) * sum(map(len, layers))
        waiting = self.resources.part if self.folds.reuses_slabs else None
        batch = windows_at_once(patch) if self.folds.takes_batches else 1
        with (
            tqdm(total=passes, desc=printable(preprocessed.case.name), disable=not self.progress) as bar,
            torch.autocast("cuda") if predictor.device.type == "cuda" else nullcontext(),
        ):
            sweep = Sweep(mirrored, gaussian, predictor.device, batch, waiting, bar.update)
            for fold in range(len(self.folds)):
                mean.fold = fold
                depth = patch[0] if len(patch) == 3 else 1
                sums = RollingLogits(self.heads, depth, tuple(image.shape[2:]), inside[1:], mean, sums_on)
                with self.folds.network_of(fold, self.resources.part) as network:
                    sweep.run(network, image, layers, sums)
        return output

    def _output(self, preprocessed: Preprocessed) -> tuple[CaseOutput, FoldMean]:
        properties = preprocessed.properties
        probabilities = None
        if self.save_probabilities:
            shape = (self.heads, *properties["shape_before_cropping"])
            probabilities = self._array(shape, np.float32)
        output = CaseOutput(self.predictor, properties, probabilities)
        source = tuple(preprocessed.image.shape[1:])
        total = None
        if len(self.folds) > 1:
            total = torch.from_numpy(self._array((self.heads, *source), np.float16))
        return output, FoldMean(total, len(self.folds), self._resampler(source, properties, output))

    def _array(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        return array_for(shape, dtype, self.resources.part, self.folder)

    def _resampler(self, source: tuple[int, ...], properties: dict[str, Any], give: Give) -> Rows:
        plans, configuration = self.predictor.plans_manager, self.predictor.configuration_manager
        target = properties["shape_after_cropping_and_before_resampling"]
        own = [properties["spacing"][axis] for axis in plans.transpose_forward]
        spacing = (
            configuration.spacing if len(configuration.spacing) == len(target) else [own[0], *configuration.spacing]
        )
        sampling = sampling_of(configuration, source, target, (spacing, own))
        if sampling is not None:
            return RowResampler(sampling, give)
        function: Callable[..., Any] = configuration.resampling_fn_probabilities
        logits = torch.from_numpy(self._array((self.heads, *source), np.float16))
        return WholeResampler(logits, lambda whole: function(whole, target, spacing, own), give)


def predict_cases(cases: Sequence[Case], predictor: CasePredictor) -> Iterator[Path]:
    """Predict cases and write their files; gives the path of each case, without ending, when its files are there.

    Raises:
        ValueError: a case cannot be read, predicted or written; the message names it.
    """
    resources, nnunets = predictor.resources, predictor.predictor
    written: deque[Future[Path]] = deque()

    def write(output: CaseOutput, target: Path) -> Path:
        with _naming(target.name):
            output.write(target)
        return target

    with ThreadPoolExecutor(max(1, resources.writers), thread_name_prefix="write") as pool:
        try:
            for preprocessed in read_ahead(cases, nnunets, resources.readers, resources.part):
                with _naming(preprocessed.case.name):
                    output = predictor.predict(preprocessed)
                written.append(pool.submit(write, output, predictor.folder / preprocessed.case.name))
                del preprocessed, output
                while len(written) > resources.writers or (written and written[0].done()):
                    yield written.popleft().result()
            while written:
                yield written.popleft().result()
        finally:
            for future in written:
                future.cancel()


@contextmanager
def _naming(case: str) -> Iterator[None]:
    """Name the case in errors that a file or the machine can cause."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError, AssertionError) as error:
        raise ValueError(f"{printable(case)}: {printable(f'{type(error).__name__}: {error}')}") from error
