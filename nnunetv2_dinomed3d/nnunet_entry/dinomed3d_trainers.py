"""The module in which nnU-Net's ``-tr`` finds our trainers, by name and only when asked for.

nnU-Net imports every module of the folders it searches, whichever trainer it looks for. So nothing is imported here: a
stock trainer's start is neither slowed down nor broken. A wheel puts this module into nnU-Net's own folder of trainers;
in a source tree the folder of this file is the one to export as ``nnUNet_extTrainer``.
"""


def __getattr__(name: str) -> type:
    if name.lower().startswith(
        ("nnunettrainerdinomed3d", "nnunettrainerbaseline_")
    ):  # misspelt, too: whoever wrote so means one of ours
        from nnunetv2_dinomed3d.versions import require_supported_versions

        require_supported_versions()
        from nnunetv2_dinomed3d.trainers.registry import UnknownTrainerError, defined_by_user, trainer_class

        try:
            return trainer_class(name)
        except UnknownTrainerError:
            if not defined_by_user(name):
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
