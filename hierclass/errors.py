"""Every error that callers of hierclass meet.

    HierclassError
    ├── TaxonomyError    (ValueError)  a tree or a tier is wrong
    ├── BackboneError    (ValueError)  a network can't be built or cut
    │   └── ExportError                a level can't be written as an ONNX graph
    ├── LevelError       (ValueError)  a level that the model does not have
    ├── CheckpointError  (ValueError)  a model folder is missing, damaged or of another version
    ├── ImageError       (ValueError)  an image can't be read
    ├── InputError       (ValueError)  a file, folder or option that a user named
    └── MissingExtraError (ImportError)  a package that is installed by an extra, such as torch

The message of each is one line that says what to do.
"""

import importlib.util
from numbers import Integral
from typing import Any

from taxonomy.errors import HierclassError, TaxonomyError

__all__ = [
    "BackboneError",
    "CheckpointError",
    "ExportError",
    "HierclassError",
    "ImageError",
    "InputError",
    "LevelError",
    "MissingExtraError",
    "TaxonomyError",
    "check_level",
    "require",
    "unexpected",
]


class BackboneError(HierclassError, ValueError):
    """A backbone is unknown, or holds a layer that can't be cut into levels."""


class ExportError(BackboneError):
    """A level can't be written as an ONNX graph; it still runs by PyTorch."""


class LevelError(HierclassError, ValueError):
    """A level was asked for that the network does not have."""


class CheckpointError(HierclassError, ValueError):
    """A model folder is missing, damaged, or was written by another version."""


class ImageError(HierclassError, ValueError):
    """An image can't be read: not an image, truncated, too large."""


class InputError(HierclassError, ValueError):
    """A file, folder or option named by the user does not fit."""


class MissingExtraError(HierclassError, ImportError):
    """A package is not installed; the message names the extra of hierclass that installs it."""


_NAMES = {"torch": "PyTorch", "gradio": "Gradio", "ray": "Ray", "accelerate": "Accelerate"}


def require(extra: str, *packages: str, what: str = "this") -> None:
    """Check that packages can be imported, without importing them; ``extra`` of hierclass installs them.

    Raises:
        MissingExtraError: the first that is missing: "``what`` needs PyTorch: pip install 'hierclass[torch]'".
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            name = _NAMES.get(package, package)
            raise MissingExtraError(f"{what} needs {name}: pip install 'hierclass[{extra}]'")


def check_level(level: int | None, num_levels: int) -> int:
    """Return the level, the finest of `num_levels` for None; raise `LevelError` if there is no such level."""
    if level is None:
        return num_levels - 1
    asked: Any = level  # a whole number of NumPy will do
    if isinstance(asked, bool) or not isinstance(asked, Integral) or not 0 <= int(asked) < num_levels:
        raise LevelError(f"level {level!r} does not exist; this model has levels 0 to {num_levels - 1}")
    return int(asked)


def unexpected(error: Exception) -> str:
    """Say in one line that an input failed for a reason that is none of its own."""
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return f"failed unexpectedly ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
