"""The manifest of a run: what its result depends on, and whether a command asks for the same."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hierclass.decisions.exit_policy import Request
from hierclass.errors import InputError
from hierclass.images.discovery import display_name
from hierclass.labelling.inputs import Shard
from hierclass.labelling.read_input import ReadOptions
from hierclass.labelling.run_folder import RunFolder
from taxonomy.folders import IGNORED

if TYPE_CHECKING:
    from hierclass.classifier import Classifier

Manifest: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJob:
    """What to label: the inputs that `names` lead to, the request, and how inputs are read.

    With `features`, those of the request's level are computed instead of answers.
    """

    names: tuple[str, ...]
    request: Request
    reading: ReadOptions = dataclasses.field(default_factory=ReadOptions)
    shard: Shard | None = None
    features: bool = False

    def manifest(self, classifier: Classifier) -> Manifest:
        """Return all that the result depends on, as JSON values."""
        relative = any(not os.path.isabs(name) for name in self.names)  # noqa: PTH117 - names may be too long
        return {
            "model": describe_model(classifier),
            "inputs": {
                "names": [display_name(name) for name in self.names],
                "folder": display_name(Path.cwd()) if relative else None,
                "image_column": self.reading.image_column,
                "ignore": _ignored(self.reading.ignore),
                "shard": None if self.shard is None else f"{self.shard.number}/{self.shard.of}",
            },
            "jobs": [
                {
                    "kind": "embed" if self.features else "label",
                    "previews": self.reading.previews,
                    **request_to_json(self.request),
                }
            ],
        }


def _ignored(patterns: Collection[str]) -> list[str] | None:
    """What --ignore says of patterns; None: nothing beyond the default, as in runs before there was the option."""
    if set(IGNORED) <= set(patterns):
        return [each for each in patterns if each not in IGNORED] or None
    return ["", *patterns]


def describe_model(classifier: Classifier) -> Manifest:
    """Return what tells whether two runs have the same model, as JSON values."""
    return {"digest": classifier.digest, "tiers": list(classifier.taxonomy.num_classes)}


def check_model(folder: RunFolder, ours: Manifest) -> None:
    """Raise InputError if the run was made with another model than `describe_model` says."""
    theirs = folder.manifest()["model"]
    if theirs["digest"] != ours["digest"]:
        raise InputError(
            f"the run in {display_name(folder.path)} was made with another model ({_model(theirs)}; "
            f"this one: {_model(ours)}); name that with --model, and give --int8 to both or to none"
        )


def check_place(folder: RunFolder) -> None:
    """Raise InputError if relative paths of the run's inputs were given in another working folder."""
    begun, here = folder.manifest()["inputs"]["folder"], display_name(Path.cwd())
    if begun is not None and begun != here:
        raise InputError(
            f"the run in {display_name(folder.path)} names its images as seen from {begun}, not from {here}; "
            "give the command there"
        )


def check_same(folder: RunFolder, wanted: Manifest, *, update: bool = False) -> None:
    """Raise InputError if a run was begun with another model or other options; the message names the option.

    An `update` may have other inputs, given in the same working folder.
    """
    check_model(folder, wanted["model"])
    stored = folder.manifest()
    begun_by, asked = stored["jobs"][0]["kind"], wanted["jobs"][0]["kind"]
    if begun_by != asked:
        raise InputError(
            f"the run in {display_name(folder.path)} was begun by hierclass {begun_by}, not hierclass {asked}; name "
            "another folder, or add --overwrite"
        )
    ours = {**wanted["inputs"], **wanted["jobs"][0]}
    theirs = {**request_to_json(Request()), **stored["inputs"], **stored["jobs"][0]}
    may_differ = {"names", "ignore"} if update else set[str]()
    different = [name for name, value in ours.items() if theirs.get(name) != value and name not in may_differ]
    if different:
        name = different[0]
        raise InputError(
            f"the run in {display_name(folder.path)} was begun with {_option(name)} "
            f"{_shown(theirs.get(name))}, not {_shown(ours[name])}; give the same, name another folder, or add "
            "--overwrite"
        )


def request_to_json(request: Request) -> Manifest:
    """Return a request as JSON values; its prior as an object, whose order does not count."""
    values = {**dataclasses.asdict(request), "prior": dict(request.prior)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def request_from_json(job: Manifest) -> Request:
    """Read the request of an entry of `jobs`, of which earlier versions did not write every value."""
    known = request_to_json(Request()) | job
    names = [field.name for field in dataclasses.fields(Request)]
    values: dict[str, Any] = {name: tuple(v) if isinstance(v := known[name], list) else v for name in names}
    return Request(**{**values, "prior": tuple(known["prior"].items())})


def _option(name: str) -> str:
    return {"names": "the inputs", "folder": "the working folder", "shard": "--shard"}.get(
        name, "--" + name.replace("_", "-")
    )


def _model(about: Manifest) -> str:
    return f"{about['digest'][:12]}, {' / '.join(map(str, about['tiers']))} classes"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name} {weight:g}" for name, weight in value.items()]
    if isinstance(value, list) and len(value) > 4:
        return f"{', '.join(map(str, value[:3]))} and {len(value) - 3} more"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "the default" if value is None else str(value)
