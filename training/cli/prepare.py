"""Prepare a new run on the terminal: summarise the data, propose a taxonomy and ask, choose options that are not given.

Resumed runs skip this.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from hierclass.errors import InputError
from hierclass.files import make_folder, replacing
from taxonomy import Taxonomy, TaxonomyError, load_taxonomy
from taxonomy.files import bundled
from taxonomy.proposal import Proposal, propose
from taxonomy.tables import dumps_table, with_ids_of
from taxonomy.terminal import PlainConsole
from training.cli import prompts
from training.cli.looking import look
from training.cli.tuning import say_tuning, shown, tree_of_base, with_tune, without_training
from training.data.dataset_summary import DatasetSummary, default_out, summarise_dataset
from training.data.label_names import LabelNames
from training.data.samples import inner_nodes
from training.heads.added_classes import add_classes
from training.look.seen import Seen
from training.recipe.defaults import (
    DatasetFacts,
    DefaultChoice,
    choose_network,
    choose_schedule,
    choose_tuning,
)
from training.recipe.recipe import PER_LEVEL, Recipe
from training.trainer.processes import num_processes

TREE, TABLE = "taxonomy.json", "taxonomy.csv"
"""Files of a proposed taxonomy in the run's folder: the one that is trained with, and a table for editing."""
FOUND = {
    "bundled": "the classes of the bundled taxonomy {name}",
    "ids": "WordNet synset ids",
    "names": "English names",
    "folders": "a tree of folders, which are the tiers",
}


class Declined(Exception):  # noqa: N818 - an answer, no error
    """The user rejected the taxonomy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options for proposing a taxonomy: sizes of tiers, pinned senses, and whether to skip the question.

    ``look``: whether images tell what names mean.
    """

    tiers: Sequence[int] | None = None
    pins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    yes: bool = False
    look: bool = True


def prepare(
    recipe: Recipe,
    given: Set[str],
    out: Path,
    options: PrepareOptions,
    console: PlainConsole,
    *,
    from_file: Set[str] = frozenset(),
) -> Recipe:
    """Complete a recipe: propose a taxonomy and choose all fields that are not ``given``, by the data.

    Fields ``from_file`` (a recipe for any data) are dropped where they do not fit the number of tiers or epochs. On a
    terminal the user is asked to accept the proposed taxonomy. Prints each choice with its reason. Raises `InputError`
    or `TaxonomyError` for unusable data, and `Declined` when the user rejects the taxonomy.
    """
    recipe.check()
    if recipe.base:
        tree_of_base(recipe)  # before anything is asked: whether there is a model
    found = summarise_dataset((*recipe.data, *recipe.add), pseudo_labels=recipe.pseudo_labels)
    why = ""
    if recipe.base:
        recipe, why = with_tune(recipe, given | from_file, _facts(recipe, found))
    if "taxonomy" not in given:
        recipe = dataclasses.replace(recipe, taxonomy=_tree_for(recipe, found, out, options, console))
    elif options.tiers or options.pins:
        raise InputError(
            "--taxonomy is a whole tree; --tiers and --pin belong to a proposed one: leave them out"
        )
    fit = without_training(recipe, given) if recipe.fits_heads else None
    recipe = fit or _chosen(recipe, given, from_file, found, console)
    if recipe.base:
        say_tuning(recipe, why, found, console)
    return recipe


def _facts(recipe: Recipe, found: DatasetSummary) -> DatasetFacts:
    import torch

    accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    count = min(found.num_images, recipe.limit or found.num_images)
    return DatasetFacts(count, found.side or 64, accelerator)


# ---------------------------------------------------------------- the tree


def _tree_for(
    recipe: Recipe, found: DatasetSummary, out: Path, options: PrepareOptions, console: PlainConsole
) -> str:
    """The bundled name or the path of the tree of a run: a proposed one, or one that its base decides."""
    if not recipe.add and recipe.tune != "none":
        return _tree(found, recipe.data, out, options, console)
    if options.tiers or options.pins:
        raise InputError(
            "--tiers and --pin belong to a proposed tree; here the model's tree is kept: leave them out"
        )
    old = tree_of_base(recipe)
    if recipe.tune == "none":
        _TreeFiles(out, old).write(old)
        return str((out / TREE).absolute())
    summary = summarise_dataset(recipe.add)
    seen = look(summary, console) if options.look else None
    added = add_classes(old, list(summary.ways), seen.evidence() if seen else None)
    names = ", ".join(map(repr, added.new[:5])) + (", …" if len(added.new) > 5 else "")
    count = "1 more is" if len(added.new) == 1 else f"{len(added.new)} more are"
    more = f", {count} added ({names})" if added.new else ""
    _say(console, f"{shown(Path(recipe.base))} has {len(old.leaves)} classes{more}: {added.how}")
    _agreed(_TreeFiles(out, added.proposal.taxonomy), added.proposal, found, options, console, seen)
    return str((out / TREE).absolute())


def _tree(
    found: DatasetSummary, data: Sequence[str], out: Path, options: PrepareOptions, console: PlainConsole
) -> str:
    """Propose a taxonomy, show it and ask; return the bundled name or the path of the one to train with."""
    name = default_out(data).name
    seen = look(found, console) if options.look else None
    evidence = seen.evidence() if seen else None
    proposal = propose(list(found.ways), name=name, tiers=options.tiers, pins=options.pins, evidence=evidence)
    _say_found(console, proposal, found, data)
    taxonomy = _agreed(_TreeFiles(out, proposal.taxonomy), proposal, found, options, console, seen)
    unchanged = proposal.kind == "bundled" and taxonomy == proposal.taxonomy
    return taxonomy.name if unchanged and taxonomy.name in bundled() else str((out / TREE).absolute())


def _agreed(
    files: _TreeFiles,
    proposal: Proposal,
    found: DatasetSummary,
    options: PrepareOptions,
    console: PlainConsole,
    seen: Seen | None = None,
) -> Taxonomy:
    """Show a proposed tree, or what the user made of it in the run's folder, and ask; return the one to train with."""
    taxonomy = files.edited()
    if taxonomy is not None:
        if options.tiers or options.pins:
            given = "--pin" if options.pins else "--tiers"
            raise InputError(
                f"{files.source} was edited, which {given} would undo; leave it out, or delete the file"
            )
        _say(
            console, f"with the tree as it was edited in {files.source}; delete that file for a new proposal"
        )
        shown = Proposal(taxonomy, proposal.kind)
    else:
        taxonomy, shown = proposal.taxonomy, proposal
    _check_fit(taxonomy, found)
    files.write(taxonomy)
    prompts.show(console, shown, seen)
    _say(console, f"saved as {files.tree} and, easier to edit, {files.table}")
    taxonomy = _approved(taxonomy, files, found, options, console)
    files.write(taxonomy)
    return taxonomy


def _say_found(console: PlainConsole, proposal: Proposal, found: DatasetSummary, data: Sequence[str]) -> None:
    above = {way[:end] for way in found.ways for end in range(1, len(way))}
    counts = sorted(count for way, count in found.ways.items() if way not in above)
    what = FOUND[proposal.kind].format(name=proposal.taxonomy.name)
    if proposal.unknown and not proposal.choices:
        what = "names of your own"
    spread = f"{counts[0]} to {counts[-1]}" if counts[0] < counts[-1] else f"{counts[0]}"
    text = f"{', '.join(map(_near, data))}: {sum(counts)} images of {len(counts)} classes ({spread} each): {what}"
    for way in sorted(above & found.ways.keys()):
        text += f"\n{found.ways[way]} images of {'/'.join(way)} itself count as that, not as a class below it"
    _say(console, text.encode("utf-8", "backslashreplace").decode())


def _near(data: str) -> str:
    """A path relative to the working directory, if it lies below it."""
    path = Path(data)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else data


def _approved(
    taxonomy: Taxonomy,
    files: _TreeFiles,
    found: DatasetSummary,
    options: PrepareOptions,
    console: PlainConsole,
) -> Taxonomy:
    """The taxonomy that the user accepts, possibly after editing."""
    on_terminal = sys.stdin is not None and sys.stdin.isatty() and console.is_terminal
    if options.yes or num_processes() > 1 or not on_terminal:
        why = "--yes" if options.yes else "no terminal to ask on" if not on_terminal else "several processes"
        _say(
            console,
            f"{why}: going on with this tree; to change it edit that table, and begin again with "
            f"--taxonomy {shlex.quote(str(files.table))} and another --out",
        )
        return taxonomy
    while True:
        answer = prompts.ask(console, "train with this tree? [y]es, [e]dit it, [n]o:", "yen")
        if answer == "y":
            return taxonomy
        if answer == "n":
            raise Declined(
                f"nothing was trained; edit {files.table} and give the same command again, or give a tree of yours "
                "with --taxonomy"
            )
        try:
            prompts.edit(console, files.table)
            edited = with_ids_of(load_taxonomy(files.table), taxonomy)
            _check_fit(edited, found)
        except (TaxonomyError, InputError) as error:
            console.print(f"{error} (yes takes the tree shown last)", style="red", soft_wrap=True)
            continue
        taxonomy = edited
        console.print(prompts.draw(taxonomy, width=console.width))


def _check_fit(taxonomy: Taxonomy, found: DatasetSummary) -> None:
    """Raise `InputError` if a class folder or a label of a table is no node of the taxonomy."""
    labels = LabelNames(taxonomy, inner_nodes(taxonomy))
    folders, texts = labels.find_folders(found.ways), labels.find_texts(found.ways)
    missing = [way for way in found.ways if folders[way] is None and texts[way] is None]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"the tree has no leaf for the class folder {'/'.join(missing[0])!r}{more}: give a leaf that name or that "
            f"id in {TABLE}, or delete {TABLE} and {TREE} in the folder of the run for a new proposal"
        )


class _TreeFiles:
    """The taxonomy in a run's folder, as JSON for training and as a CSV table for editing.

    A hidden file stores the checksums of both as proposed, to detect edits.
    """

    def __init__(self, out: Path, proposed: Taxonomy) -> None:
        self.tree, self.table, self.sums = out / TREE, out / TABLE, out / ".proposed"
        self.proposed, self.source = proposed, out / TABLE

    def edited(self) -> Taxonomy | None:
        """The taxonomy as the user edited it after an earlier start, or None."""
        known = self.sums.read_text("utf-8").split() if self.sums.exists() else []
        changed = [file for file in (self.table, self.tree) if file.exists() and _sum(file) not in known]
        if not changed:
            return None
        both = len(changed) == 2 and self.table.read_text("utf-8") == _table_of(self.tree)
        self.source = self.tree if both else changed[0]
        edited = load_taxonomy(self.source)
        return with_ids_of(edited, self.proposed) if self.source == self.table else edited

    def write(self, taxonomy: Taxonomy) -> None:
        """Write the files atomically; raises `InputError` on failure."""
        try:
            make_folder(self.tree.parent)
            taxonomy.save(self.tree)
            with replacing(self.table) as file:
                file.write_text(dumps_table(taxonomy), encoding="utf-8", newline="\n")
            if taxonomy is self.proposed:
                self.sums.write_text(f"{_sum(self.table)} {_sum(self.tree)}\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--out {self.tree.parent} cannot be written: {error.strerror}") from error


def _sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _table_of(tree: Path) -> str:
    try:
        return dumps_table(load_taxonomy(tree))
    except TaxonomyError:
        return ""


# ---------------------------------------------------------------- what was not given


def _chosen(
    recipe: Recipe, given: Set[str], from_file: Set[str], found: DatasetSummary, console: PlainConsole
) -> Recipe:
    """Choose network, pretrained weights and schedule for the data; prints each choice with its reason."""
    from training.trainer.pretrained import find_pretrained

    facts = _facts(recipe, found)
    if recipe.base:
        return _for_base(recipe, given, from_file, facts, console)
    network = choose_network(facts)
    if "backbone" in given:
        network = DefaultChoice({"size": _fixed_size(recipe.backbone) or network.values["size"]}, network.why)
    recipe = _take(recipe, given, network, console)
    num_tiers = load_taxonomy(recipe.taxonomy).num_tiers
    recipe = _fitting(recipe, from_file, num_tiers, console)
    recipe = _take(recipe, frozenset(), _levels(recipe, num_tiers), console)
    if "pretrained" not in given:
        start = find_pretrained(recipe.backbone, reach=num_processes() == 1)  # several must find the same
        recipe = dataclasses.replace(recipe, pretrained=start.usable)
        scratch = "" if start.usable else "from scratch, which needs more images and epochs: "
        _say(console, f"start: {scratch}{start.why}")
    if recipe.pretrained and recipe.structure == "slices" and "order" not in given:
        why = "the channels with the largest pretrained weights serve the lowest level"
        recipe = _take(recipe, given, DefaultChoice({"order": "importance"}, why), console)
    return _scheduled(recipe, given, from_file, facts.num_images, console)


def _for_base(
    recipe: Recipe, given: Set[str], from_file: Set[str], facts: DatasetFacts, console: PlainConsole
) -> Recipe:
    """The recipe with network and sizes of its base, whose network is trained, and a schedule for that."""
    from training.trainer.network import fields_of_base

    taxonomy = load_taxonomy(recipe.taxonomy)
    fields = {k: v for k, v in fields_of_base(Path(recipe.base), taxonomy).items() if k not in given}
    recipe = _fitting(dataclasses.replace(recipe, **fields), from_file, taxonomy.num_tiers, console)
    return _scheduled(recipe, given, from_file, facts.num_images, console)


def _scheduled(
    recipe: Recipe, given: Set[str], from_file: Set[str], num_images: int, console: PlainConsole
) -> Recipe:
    """Choose the schedule for the number of images."""
    batch_size = recipe.batch_size if "batch_size" in given else None
    if recipe.base:
        schedule = choose_tuning(num_images, batch_size=batch_size)
    else:
        schedule = choose_schedule(num_images, pretrained=recipe.pretrained, batch_size=batch_size)
    if "opt" in given:
        schedule = DefaultChoice(
            {name: value for name, value in schedule.values.items() if name != "lr"}, schedule.why
        )
    recipe = _take(recipe, given, schedule, console)
    if recipe.epochs <= recipe.warmup_epochs and "warmup_epochs" not in given - from_file:
        recipe = dataclasses.replace(recipe, warmup_epochs=recipe.epochs - 1)
    return recipe


def _fitting(recipe: Recipe, from_file: Set[str], num_tiers: int, console: PlainConsole) -> Recipe:
    """Drop per-level fields of a recipe file whose length is not the number of tiers."""
    for name in sorted(from_file & set(PER_LEVEL)):
        values = getattr(recipe, name)
        if values and len(values) != num_tiers:
            _say(
                console, f"left out: the recipe's {name}, which are for {len(values)} levels, not {num_tiers}"
            )
            recipe = dataclasses.replace(recipe, **{name: getattr(Recipe, name)})
    return recipe


def _levels(recipe: Recipe, num_tiers: int) -> DefaultChoice:
    """Default share of the network per level; empty if the recipe gives shares."""
    from hierclass.nested import STRUCTURES, default_shares

    option = STRUCTURES[recipe.structure].shares
    why = (
        f"a level for each of {num_tiers} tiers, each half of the next"
        if num_tiers > 1
        else "one tier, one level"
    )
    values = {} if getattr(recipe, option) else {option: default_shares(num_tiers)}
    return DefaultChoice(values, why)


def _take(recipe: Recipe, given: Set[str], choice: DefaultChoice, console: PlainConsole) -> Recipe:
    """Apply the values of a choice that are not given, and print them."""
    values: dict[str, Any] = {name: value for name, value in choice.values.items() if name not in given}
    told = [
        f"--{name.replace('_', '-')} {_text(value)}" for name, value in values.items() if value is not None
    ]
    if told:
        _say(console, f"chosen: {' '.join(told)} ({choice.why})")
    return dataclasses.replace(recipe, **values)


def _text(value: Any) -> str:
    return ",".join(f"{share:g}" for share in value) if isinstance(value, tuple) else str(value)


def _fixed_size(backbone: str) -> int | None:
    """Image side of a backbone that accepts no other, or None."""
    import timm

    try:
        published = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    except RuntimeError:  # an unknown tag: making the model says so
        return None
    return int(published.input_size[-1]) if published is not None and published.fixed_input_size else None


def _say(console: PlainConsole, text: str) -> None:
    console.print(text, soft_wrap=True)
