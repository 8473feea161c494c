"""CIFAR-100, read by torchvision from local files; nothing is downloaded.

The files are pickles, which can run code when read. torchvision compares their MD5 sums with the published ones and
refuses other files unread.
"""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import CIFAR100

from hierclass.errors import InputError
from training.data.datasets import ImageListing

LOADER: type[CIFAR100] = CIFAR100


def read_cifar100(path: Path, *, train: bool) -> ImageListing:
    """List the 50,000 training or 10,000 test images (32 x 32), labelled by class names.

    ``path`` is the folder ``cifar-100-python`` or its parent. Raises `InputError` for a missing or altered file.
    """
    loader = LOADER
    root = path.parent if path.name == loader.base_folder else path
    folder = root / loader.base_folder
    expected = [name for name, _ in (*loader.train_list, *loader.test_list)] + [loader.meta["filename"]]
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"cifar100 expects the files {', '.join(expected)} in {folder}, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; unpack cifar-100-python.tar.gz there"
        )
    try:
        images = loader(str(root), train=train, download=False)
    except RuntimeError as error:  # what torchvision says of a wrong sum
        raise InputError(
            f"the files in {folder} are not those that were published (their MD5 sums differ), so they are not read; "
            "unpack cifar-100-python.tar.gz again"
        ) from error
    part = "train" if train else "test"
    return ImageListing(
        f"cifar100 {part}",
        list(images.data),
        [f"{part}_{index}.png" for index in range(len(images.data))],
        [(images.classes[target],) for target in images.targets],
    )
