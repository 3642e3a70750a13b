"""nnU-Net's planner with patch and batch for DINO-Med3D."""

from copy import deepcopy
from pathlib import Path

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.evaluation.dataset import folder_of
from nnunetv2_dinomed3d.trainers.memory import GB, Choice, TrainingMemory
from nnunetv2_dinomed3d.trainers.trainer import nnUNetTrainerDINOMed3D

PLANS_NAME = "nnUNetDINOMed3DPlans"


class DINOMed3DPlanner(ExperimentPlanner):
    """Takes spacing, normalisation, resampling and the preprocessed data from plans that are there.

    Only patch and batch of the 3D configurations are its own. What the plans say of an architecture stays the other
    network's, which DINO-Med3D's trainers do not read; train that network on its own plans.

    Args:
        dataset_name: such as ``Dataset004_Hippocampus``.
        gpu_memory_target_in_gb: in 10^9 bytes, of one GPU.
        trainer: class of the trainer that the plans are made for.
        base_plans: name of the plans that the data was preprocessed with.

    Attributes:
        choices: of each 3D configuration, after `plan_experiment`.
    """

    def __init__(
        self,
        dataset_name: str,
        gpu_memory_target_in_gb: float,
        trainer: type[nnUNetTrainerDINOMed3D],
        base_plans: str = "nnUNetPlans",
    ) -> None:
        self.base_plans = _read_base_plans(dataset_name, base_plans)
        super().__init__(dataset_name, gpu_memory_target_in_gb, plans_name=PLANS_NAME)
        self.trainer = trainer
        self.choices: dict[str, Choice] = {}

    def plan_experiment(self) -> dict:
        """Choose, and write the plans beside the others."""
        plans = deepcopy(self.base_plans)
        manager = PlansManager(self.base_plans)
        names = [name for name in plans["configurations"] if len(manager.get_configuration(name).patch_size) == 3]
        if not names:
            raise ValueError(
                f"{self.base_plans['plans_name']} of {self.dataset_name} has only 2D configurations "
                f"({', '.join(plans['configurations'])}), and DINO-Med3D segments volumes. Plan a 3D one: "
                "nnUNetv2_plan_and_preprocess -d DATASET -c 3d_fullres"
            )
        for name in names:
            memory = TrainingMemory(self.trainer, self.base_plans, name, self.dataset_json)
            self.choices[name] = memory.choose(round(self.UNet_vram_target_GB * GB))
        plans["configurations"] = {
            name: {
                **plans["configurations"][name],
                "patch_size": list(choice.patch_size),
                "batch_size": choice.batch_size,
            }
            for name, choice in self.choices.items()
        }
        plans["plans_name"] = self.plans_identifier
        plans["experiment_planner_used"] = type(self).__name__
        plans["dinomed3d"] = {
            "based_on": self.base_plans["plans_name"],
            "trainer": self.trainer.__name__,
            "gpu_memory_target_in_gb": self.UNet_vram_target_GB,
        }
        self.plans = plans
        self.save_plans(plans)
        return plans


def _read_base_plans(dataset_name: str, base_plans: str) -> dict:
    """The plans to build upon, and all else that nnU-Net's planner needs is there.

    Raises:
        ValueError: something is missing.
    """
    folder = Path(nnUNet_preprocessed) / dataset_name
    needed = [
        folder_of("nnUNet_raw") / dataset_name / "dataset.json",
        folder / "dataset_fingerprint.json",
        folder / f"{base_plans}.json",
    ]
    for file in needed:
        if not file.is_file():
            raise ValueError(
                f"{file} does not exist. DINO-Med3D's plans build upon nnU-Net's (-p names others than nnUNetPlans) "
                f"and its preprocessed data: nnUNetv2_plan_and_preprocess -d {dataset_name} -c 3d_fullres"
            )
    return read_json(needed[-1])
