"""The paper's recipe on the paper's data: passes over the data as epochs, its clip, its batches (section 3.2)."""

import shlex
import zlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_dinomed3d.planning.step_memory import Step
from nnunetv2_dinomed3d.planning.training_memory import name_of_plans
from nnunetv2_dinomed3d.trainers.dinomed3d.passes import Passes, pass_batches, widened
from nnunetv2_dinomed3d.trainers.dinomed3d.slabs import CropSlab
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.released import nnUNetTrainerDINOMed3D_released
from nnunetv2_dinomed3d.trainers.harness.input_checks import require_axes
from nnunetv2_dinomed3d.trainers.harness.randomness import derived_seed
from nnunetv2_dinomed3d.trainers.harness.whole_cases import windows_of_cases


class nnUNetTrainerDINOMed3D_paper(nnUNetTrainerDINOMed3D_released):
    """`_released`, with the paper's clip and batches, and passes over the training cases as epochs.

    An epoch of stage 1 has every slice of every training case once as the centre of a slab, an epoch of stage 2 the
    clips that cover every case, both in random order. So the data say how many steps an epoch has, and
    ``iterations_per_epoch`` has no effect. On several GPUs each takes its share; a batch of stage 2 then has a clip for
    each of them.

    Attributes:
        fixed_patch: ``(D, H, W)`` of stage 2's clips, and of the slices of both stages. The plans have to have it, as
            nnU-Net predicts on theirs. A smaller case is filled up with zeros, as nnU-Net does.
        own_plans_name: of the plans that ``dinomed3d plan`` makes for it.
    """

    fixed_patch: tuple[int, int, int] = (16, 512, 512)
    own_plans_name = "nnUNetDINOMed3DPlans_paper"

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        require_axes(plans, configuration)
        self._require_clip(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)

    def _require_clip(self, plans: dict, configuration: str) -> None:
        patch_size = PlansManager(plans).get_configuration(configuration).patch_size
        if tuple(patch_size) != self.fixed_patch:
            trainer = type(self).__name__
            command = ["dinomed3d", "plan", "-d", plans["dataset_name"], "-p", plans["plans_name"], "-tr", trainer]
            raise ValueError(
                f"patch_size of {configuration} in {plans['plans_name']} is {list(patch_size)}, and {trainer} trains "
                f"and predicts on the paper's {list(self.fixed_patch)}. Make plans with it, on the same preprocessed "
                f"data: {shlex.join(command)}; then train with -p {name_of_plans(type(self))}."
            )

    @classmethod
    def training_steps(
        cls, plans: PlansManager, configuration: ConfigurationManager, in_channels: int, num_classes: int
    ) -> list[Step]:
        """The steps of both stages; stage 2's has one clip. The data decide how many there are."""
        steps = super().training_steps(plans, _with_batch(configuration, 1), in_channels, num_classes)
        return [replace(step, count=None) for step in steps]

    def configuration_of_stage(self) -> ConfigurationManager:
        """Stage 1's batches are slabs, stage 2's one clip for each rank, whatever batch the plans have."""
        if self.stage == 1:
            return super().configuration_of_stage()
        _, ranks = self.rank_and_ranks()
        return _with_batch(self.configuration_manager, ranks)

    # ---- data ----

    def make_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """Batches of passes over the training cases, and of every slice of the validation cases."""
        return self._pass_batches(), self._whole_dataloader()

    def _pass_batches(self) -> Iterator[dict]:
        """Batches from the first one that the epoch has left; the number of a pass's becomes that of an epoch's."""
        augmentation = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        dataset, _ = self.get_tr_and_val_datasets()
        with self.stage_configuration() as configuration:
            size = configuration.patch_size
            transforms, _ = self._transforms(size, augmentation)
        if self.stage == 1:
            transforms = ComposeTransforms([transforms, CropSlab(self.slab_depth)])
        arguments = self._loader_arguments()
        windows = windows_of_cases(dataset, size, every_slice=self.stage == 1)
        loaded = augmentation.initial_patch_size
        passes = Passes(
            widened(windows, size, loaded),
            arguments.pop("batch_size"),
            *self.rank_and_ranks(),
            derived_seed(self._seed_of_order(), self.stage),
        )
        self.num_iterations_per_epoch = passes.batches
        self.print_to_log_file(
            f"An epoch of stage {self.stage} is a pass over {len(dataset.identifiers)} cases: {len(windows)} "
            f"{'slabs' if self.stage == 1 else 'clips'}, {passes.batches} steps of {passes.batch_size} on this device."
        )
        first = self.current_epoch * passes.batches + self._steps_done()
        return pass_batches(dataset, passes, first, loaded, transforms=transforms, **arguments)

    def _seed_of_order(self) -> int:
        """The same on all ranks, and after each stop."""
        training = self._training or {}
        seed = training.get("seed")
        return zlib.crc32(str(training.get("id")).encode()) if seed is None else seed

    def _steps_done(self) -> int:
        """Steps of this epoch that were made before a stop."""
        steps = (self._resume or {}).get("steps")
        return len(steps["train"]) if steps and steps["epoch"] == self.current_epoch else 0


def _with_batch(configuration: ConfigurationManager, batch_size: int) -> ConfigurationManager:
    return ConfigurationManager({**configuration.configuration, "batch_size": batch_size})
