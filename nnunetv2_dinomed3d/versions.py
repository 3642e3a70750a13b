"""The versions of other packages that this one needs, as pyproject.toml states them, and those installed."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

DISTRIBUTION = "nnunetv2_dinomed3d"


@dataclass(frozen=True)
class Dependency:
    """A requirement of this package.

    Attributes:
        requirement: name and bounds.
        version: the installed version; None if the package is not installed.
    """

    requirement: Requirement
    version: str | None

    @property
    def met(self) -> bool:
        """Whether the installed version is within the bounds."""
        return self.version is not None and self.requirement.specifier.contains(self.version, prereleases=True)

    @property
    def fix(self) -> str:
        """The command that installs a version within the bounds."""
        return f"pip install '{self.requirement}'"

    def __str__(self) -> str:
        installed = "is not installed" if self.version is None else f"{self.version} is installed"
        return f"{self.requirement.name} {installed}, {self.requirement} is needed"


def dependencies() -> Iterator[Dependency]:
    """The requirements that apply to this Python and machine, without extras.

    Raises:
        importlib.metadata.PackageNotFoundError: this package is not installed, but found on the path.
    """
    for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        yield Dependency(requirement, version)


def require_supported_versions() -> None:
    """Stop with a clear message, before a version out of bounds breaks an import or a training.

    Raises:
        RuntimeError: a package is missing, too old or too new.
    """
    try:
        unmet = [dependency for dependency in dependencies() if not dependency.met]
    except metadata.PackageNotFoundError:
        return  # this package runs from its source tree, where no metadata states the bounds
    if unmet:
        raise RuntimeError(f"{unmet[0]}: {unmet[0].fix}. `dinomed3d doctor` checks the others.")
