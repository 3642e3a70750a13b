"""Modules under the names that they had up to version 0.1, for one release: trainers of a user's own import them."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

PACKAGE = __name__.rpartition(".")[0]

MOVED = {
    "cli": "commands.main",
    "convert": "commands.convert",
    "doctor": "commands.doctor",
    "entry": "commands.trainer_path",
    "fetch": "commands.weights",
    "requirements": "versions",
    "demo.run": "demo.pipeline",
    "evaluation.compare": "commands.compare",
    "evaluation.dataset": "nnunet_files",
    "evaluation.training_log": "training_log",
    "look.run": "commands.look",
    "network_architecture.detail": "network_architecture.detail_stream",
    "network_architecture.memory": "planning.step_memory",
    "network_architecture.network": "network_architecture.dinomed3d",
    "network_architecture.patch": "planning.patch_choice",
    "network_architecture.recompute": "network_architecture.efficiency.checkpointing",
    "network_architecture.slab": "network_architecture.token_grid",
    "network_architecture.slice_cache": "network_architecture.efficiency.slab_cache",
    "network_architecture.upsampled": "network_architecture.efficiency.upsampled_conv",
    "network_architecture.winograd": "network_architecture.efficiency.winograd",
    "planning.plan": "commands.plan",
    "trainers.checks": "trainers.harness.input_checks",
    "trainers.memory": "planning.training_memory",
    "trainers.progress": "trainers.dinomed3d.progress_plot",
    "trainers.reuse": "trainers.dinomed3d.start_weights",
    "trainers.robust": "trainers.harness.fault_tolerant",
    "trainers.sampling": "trainers.dinomed3d.slabs",
    "trainers.schedule": "trainers.dinomed3d.schedule",
    "trainers.shallow": "trainers.harness.in_plane_blur",
    "trainers.trainer": "trainers.dinomed3d.trainer",
    "trainers.variants": "trainers.dinomed3d.variants",
    "trainers.variants.ablations": "trainers.dinomed3d.variants.ablations",
    "trainers.variants.lengths": "trainers.dinomed3d.variants.lengths",
    "trainers.variants.names": "trainers.registry",
    "trainers.variants.released": "trainers.dinomed3d.variants.released",
    "trainers.variants.sizes": "trainers.dinomed3d.variants.sizes",
}
"""Old name to new name, in this package."""


class OldNames(MetaPathFinder, Loader):
    """Finds a module under its old name: the same module, with a `DeprecationWarning`."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return spec_from_loader(fullname, self) if package == PACKAGE and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"{PACKAGE}.{MOVED[spec.name.partition('.')[2]]}"
        module = import_module(new)
        self._specs[spec.name] = module.__spec__
        warnings.warn(f"{spec.name} is {new} now; the old name will go.", DeprecationWarning, stacklevel=2)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__
        module.__spec__ = self._specs.pop(module.__spec__.name)  # Python has put the old name's there


def install() -> None:
    """Let Python find the old names, before it looks for files: a moved package has files under its new name."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldNames())
