"""The one thing that pyproject.toml cannot say: a wheel adds a module to nnU-Net's folder of trainers.

With it, ``-tr`` finds our trainers without a setting. An editable install adds nothing: its import hook would have to
answer for the name ``nnunetv2``. There ``nnUNet_extTrainer`` names the module's folder (``dinomed3d trainer-path``).
That folder is no package: setuptools would put a package's ``__init__.py`` over nnU-Net's.
"""

import sys

from setuptools import setup

TRAINERS = "nnunetv2.training.nnUNetTrainer"

if {"editable_wheel", "develop"} & set(sys.argv):
    setup()
else:
    setup(py_modules=[f"{TRAINERS}.dinomed3d_trainers"], package_dir={TRAINERS: "nnunetv2_dinomed3d/nnunet_entry"})
