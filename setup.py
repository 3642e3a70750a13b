"""Packaging of nnunetv2_dinomed3d. Each dependency stands here with what it is for and why it is bounded as it is."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

ENTRY = "nnunetv2_dinomed3d/nnunet_entry"

INSTALL_REQUIRES = [
    "nnunetv2>=2.8,<3",  # the trainer's base class; 2.8 brought nnUNet_extTrainer
    "torch>=2.6",  # the network; 2.6 is the oldest that is tested
    "timm>=1.0.21",  # DINOv3's ViTs; 1.0.20 has them too, but cannot build them on the meta device
    "dynamic-network-architectures>=0.4.4",  # nnU-Net's own, it also caps timm: 0.4.4 admits up to 1.0.22
    "peft>=0.18",  # LoRA; the oldest that runs beside transformers 5
    "transformers>=5.21",  # peft loads it; beside an older one nnU-Net's search of nnUNet_extTrainer fails
    "batchgenerators>=0.25.3",  # loader workers, started for slabs as nnU-Net starts its own; 0.25.3 ends them in order
    "batchgeneratorsv2>=0.3.2",  # the base class of a transform
    "einops>=0.7",  # every move of axes, readable
    "numpy>=1.26",
    "safetensors>=0.8",  # weights without unpickling; transformers asks for 0.8
    "huggingface_hub>=1.31",  # weights from the hub when none are named; transformers asks for 1.31
    "SimpleITK>=2.2.1",  # label maps to compare, the demo's NIfTI files
    "nibabel>=5.3",  # NIfTI's header, which ITK does not always read as nnU-Net does; 5.3 is the oldest tested
    "scipy>=1.11.4",  # distances between surfaces, Wilcoxon's test, the demo's texture
    "matplotlib>=3.8",  # pictures of the report and the demo
    "tqdm>=4.60",  # compare's progress bar; nnU-Net has it too, without a bound
    "packaging>=22",  # doctor compares versions
]

EXTRAS_REQUIRE = {
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.8",  # two files at a time, in the order of their names (3.8): the long ones are not last
        "ruff==0.17.6",  # a newer one may format or complain differently
        "mypy==2.4.1",  # likewise
        "wandb>=0.22",  # nnU-Net logs to it where asked for; older ones are talked to over TCP, not a Unix socket
        "setuptools>=70.1",  # a test builds the wheel
        "medpy>=0.5",  # independent HD95 to compare with
        "monai>=1.5",  # likewise surface Dice
    ],
}


def entry_module() -> dict:
    """The module that a wheel adds to nnU-Net's folder of trainers, so that ``-tr`` finds ours without a setting.

    Not in an editable install: its import hook would have to answer for the name ``nnunetv2``. There
    ``nnUNet_extTrainer`` points at the module's folder (``dinomed3d trainer-path``). That folder is no package: of one,
    setuptools would put the ``__init__.py`` over nnU-Net's.
    """
    if {"editable_wheel", "develop"} & set(sys.argv):
        return {}
    return {
        "py_modules": ["nnunetv2.training.nnUNetTrainer.dinomed3d_trainers"],
        "package_dir": {"nnunetv2.training.nnUNetTrainer": ENTRY},
    }


setup(
    name="nnunetv2_dinomed3d",
    version="0.2.0",
    description="DINO-Med3D, a 3D segmentation network on DINOv3, as a trainer of nnU-Net v2",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["nnunetv2_dinomed3d", "nnunetv2_dinomed3d.*"]),
    package_data={"nnunetv2_dinomed3d": ["nnunet_entry/*.py"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["dinomed3d=nnunetv2_dinomed3d.commands.main:main"]},
    **entry_module(),
)
