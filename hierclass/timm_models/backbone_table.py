"""The table of timm's families: which nest, in which structures, and why not; `benchmarks/backbones.py` writes it.

Reading it needs neither torch nor timm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hierclass.errors import BackboneError, require

if TYPE_CHECKING:
    from hierclass.timm_models.backbone_probe import ProbeResult


@dataclass(frozen=True)
class BackboneFamily:
    """The models of one module of timm."""

    name: str
    nests: tuple[str, ...]
    """Names of the models that nest as `slices`."""
    refused: Mapping[str, str]
    """Name of each other model → the reason, in one line."""
    proven: Mapping[str, str]
    """Structure → the model that was built with weights and verified."""
    failed: Mapping[str, str]
    """Structure → why that model does not nest in it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models."""
        return (*self.nests, *self.refused)

    @property
    def num_models(self) -> int:
        """Number of models."""
        return len(self.nests) + len(self.refused)

    @property
    def reason(self) -> str:
        """The most frequent reason why models do not nest; empty if all do."""
        reasons = list(self.refused.values())
        return max(reasons, key=reasons.count) if reasons else ""

    def only(self, pattern: str) -> BackboneFamily:
        """Return the family with the models whose names match a pattern; with all if its own name matches."""
        if fnmatchcase(self.name, pattern):
            return self
        nests = tuple(name for name in self.nests if fnmatchcase(name, pattern))
        refused = {name: why for name, why in self.refused.items() if fnmatchcase(name, pattern)}
        return BackboneFamily(self.name, nests, refused, self.proven, self.failed)


@dataclass(frozen=True)
class BackboneTable:
    """All families of one version of timm."""

    timm: str
    """Version of timm that was probed."""
    families: tuple[BackboneFamily, ...]

    def matching(self, pattern: str) -> BackboneTable:
        """Return the families whose name, or the name of a model, matches a pattern like `*vit*`."""
        narrowed = (family.only(pattern) for family in self.families)
        return BackboneTable(self.timm, tuple(family for family in narrowed if family.num_models))

    @property
    def names(self) -> Iterator[str]:
        """Names of all models."""
        return (name for family in self.families for name in family.names)

    def family(self, model: str) -> BackboneFamily | None:
        """Return the family of a model, None if it is not in the table."""
        return next((family for family in self.families if model in family.names), None)

    @property
    def num_models(self) -> int:
        """Number of models."""
        return sum(family.num_models for family in self.families)

    @property
    def num_nesting(self) -> int:
        """Number of models that nest as `slices`."""
        return sum(len(family.nests) for family in self.families)

    def summary(self) -> str:
        """Return the totals in one line."""
        families = sum(bool(family.nests) for family in self.families)
        return (
            f"{self.num_nesting} of {self.num_models} models, in {families} of {len(self.families)} families, "
            f"can be cut into slices (timm {self.timm})"
        )

    def to_json(self) -> str:
        """Return the table as JSON for `read_backbones`."""
        families = {
            family.name: {
                "nests": list(family.nests),
                "refused": dict(family.refused),
                "proven": dict(family.proven),
                "failed": dict(family.failed),
            }
            for family in self.families
        }
        return json.dumps({"timm": self.timm, "families": families}, indent=1, ensure_ascii=False) + "\n"


def models_to_try(pattern: str | None, *, force: bool = False) -> list[str]:
    """Return the models that must be probed for a pattern; none if the shipped table has the answer.

    The exact name of a model is always probed; with `force`, all that match are.

    Raises:
        BackboneError: nothing matches, in the table or in timm.
        MissingExtraError: models must be probed, and torch or timm is not installed.
    """
    table = shipped_backbones()
    if not force and (pattern is None or (pattern not in table.names and table.matching(pattern).families)):
        return []
    require("torch", "torch", "timm", what="trying a model")
    import timm

    if pattern is not None and timm.is_model(pattern):
        return [pattern]
    of_families = {name for family in table.matching(pattern or "*").families for name in family.names}
    found = [name for name in timm.list_models() if name in of_families or fnmatchcase(name, pattern or "*")]
    if not found:
        raise BackboneError(f"no model or family of timm matches {pattern!r}; try a pattern like *vit*")
    return found


@cache
def shipped_backbones() -> BackboneTable:
    """Return the table that comes with hierclass."""
    return read_backbones(files("hierclass").joinpath("data/backbones.json").read_text(encoding="utf-8"))


def probe_models(models: Sequence[str]) -> Iterator[tuple[ProbeResult, BackboneFamily | None]]:
    """Probe models one by one; yield each result, and the family in the shipped table (None: not there)."""
    if models:
        from hierclass.timm_models.backbone_probe import probe_backbone

        for name in models:
            yield probe_backbone(name), shipped_backbones().family(name)


def read_backbones(text: str) -> BackboneTable:
    """Read what `BackboneTable.to_json` returned."""
    content: dict[str, Any] = json.loads(text)
    return BackboneTable(
        content["timm"],
        tuple(
            BackboneFamily(name, tuple(found["nests"]), found["refused"], found["proven"], found["failed"])
            for name, found in content["families"].items()
        ),
    )


def to_markdown(backbones: BackboneTable) -> str:
    """Return the table as the page `docs/backbones.md`."""
    lines = [*_HEAD, f"**{backbones.summary()}.**", ""]
    lines += ["| family | models | nest | structures | shown on |", "| --- | ---: | ---: | --- | --- |"]
    for family in backbones.families:
        shown = ", ".join(dict.fromkeys(family.proven.values()))
        structures = ", ".join(family.proven)
        lines.append(
            f"| {family.name} | {family.num_models} | {len(family.nests)} | {structures or '–'} | {shown or '–'} |"
        )
    lines += ["", "## What does not nest, and why", ""]
    for family in backbones.families:
        lines += _refusals(family)
    return "\n".join(lines).rstrip() + "\n"


_HEAD = (
    "# Backbones",
    "",
    "Every model of timm was cut into three levels (widths 0.25, 0.5, 1, structure `slices`) without memory for its",
    "weights, and run on sizes. The smallest model of each family that nests was also built with weights: cut as one",
    "level it answers like timm, and in every structure named below it passed the proof of nestedness. This page is",
    "written by `python benchmarks/backbones.py`; `hierclass backbones NAME` tries one model.",
    "",
)


def _refusals(family: BackboneFamily) -> list[str]:
    """Lines of a list: models that fail for the same reason, and structures in which the family does not nest."""
    groups: dict[str, list[str]] = {}
    for name, why in family.refused.items():
        groups.setdefault(why, []).append(name)
    lines = [f"- **{family.name}**: {_listed(names)}: {_code(why)}" for why, names in groups.items()]
    lines += [f"- **{family.name}**, structure {name}: {_code(why)}" for name, why in family.failed.items()]
    return lines


def _listed(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{name}`" for name in names[:most]) + rest


def _code(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_").replace("*", "\\*")
