"""`python -m taxonomy build | show | check`: make, draw and check taxonomies in a terminal.

Exit codes: 0 done; 1 what was given is wrong (a file's content, an unknown name); 2 wrong use.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from taxonomy import files
from taxonomy.anchors import Anchors
from taxonomy.build import from_names, from_synsets
from taxonomy.errors import HierclassError, TaxonomyError
from taxonomy.folders import from_folder
from taxonomy.json_document import json_lines, line_of
from taxonomy.senses import SenseChoice
from taxonomy.streams import clipped, dash_hint, prepare_streams, visible
from taxonomy.terminal import PlainConsole
from taxonomy.tree import Node, Taxonomy

app = typer.Typer(
    name="taxonomy",
    help="Trees of classes with nested tiers: build, draw and check them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_SYNSET = re.compile(r"n\d{8}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; every error is one line on standard error, none a traceback."""
    prepare_streams()
    try:
        code = app(list(arguments) if arguments is not None else None, standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except HierclassError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(str(error), 1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # Typer's errors of use have it in common
            raise
        if message := error.format_message():
            words = list(arguments) if arguments is not None else sys.argv[1:]
            _fail(f"{message} (--help says more){dash_hint(words)}", 2)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"taxonomy: {visible(clipped(' '.join(message.split())))}", file=sys.stderr)
    sys.exit(code)


# ---------------------------------------------------------------- build


@app.command()
def build(
    names: Annotated[
        list[str] | None, typer.Argument(help="English class names, such as 'tabby cat'.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The JSON file to write.")] = None,
    ids: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file with a WordNet 3.0 id a line.")
    ] = None,
    names_file: Annotated[
        Path | None,
        typer.Option("--names", exists=True, dir_okay=False, help="A file with a class name a line."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A tree of class folders.")
    ] = None,
    tiers: Annotated[
        str | None, typer.Option(help="Numbers of classes of the coarser tiers, coarse to fine: 12,40.")
    ] = None,
    anchors: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="JSON: per coarser tier a list of synset ids it must have."
        ),
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="The sense of a name: crane=n03126707. May be repeated.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the taxonomy; else that of the output file.")
    ] = None,
    named: Annotated[
        bool, typer.Option("--named", help="What follows an id in the file of --ids is the leaf's name.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Build a taxonomy from names, WordNet ids or a folder tree, and say which senses were chosen."""
    sources = [source for source in (names, ids, names_file, folder) if source]
    if len(sources) != 1:
        raise typer.BadParameter("give one of: class names, --names FILE, --ids FILE or --folder DIR")
    if output is None:
        raise typer.BadParameter("say with -o FILE.json where the taxonomy goes")
    if any(
        each is not None and each.exists() and output.exists() and each.samefile(output)
        for each in (ids, names_file, anchors)
    ):
        raise typer.BadParameter(f"{output} is what the tree is made of; name another file")
    if output.is_file() and output.stat().st_size and not overwrite:
        raise typer.BadParameter(f"{output} exists; add --overwrite to replace it, or name another file")
    if named and ids is None:
        raise typer.BadParameter("--named says how --ids is read; give them together")
    if pin and (ids or folder):
        raise typer.BadParameter("--pin chooses the sense of a name; it goes with class names or --names")
    if folder is not None and (tiers or anchors):
        raise typer.BadParameter("the tiers of --folder are its folders; leave --tiers and --anchors out")
    title = name or output.stem
    sizes, groups = _sizes(tiers), _anchors(anchors)
    if folder is not None:
        made = from_folder(folder)
        taxonomy = Taxonomy.from_dict({**made.to_dict(), "name": title})
    elif ids is not None:
        leaves = _read_ids(ids)
        own = {leaf: text for leaf, text in leaves.items() if text} if named else {}
        taxonomy = from_synsets([*leaves], tiers=sizes, anchors=groups, name=title, names=own)
    else:
        wanted = [line for _, line in _read_lines(names_file)] if names_file is not None else names or []
        taxonomy, choices = from_names(
            wanted, tiers=sizes, anchors=groups, pins=_pins(pin or [], wanted), name=title
        )
        _print_senses(choices)
    taxonomy.save(output)
    classes = " / ".join(map(str, taxonomy.num_classes))
    _print(f"wrote {output}: {len(taxonomy.leaves)} leaves, tiers of {classes}")


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--tiers {text!r} is no list of numbers; write for example 12,40") from None
    if any(size < 1 for size in sizes) or sizes != sorted(set(sizes)):
        raise typer.BadParameter(f"--tiers {text!r} must grow from coarse to fine; write for example 12,40")
    return sizes


def _anchors(path: Path | None) -> Anchors | None:
    if path is None:
        return None
    text = files.read_text(path)
    data = files.parse_json(path, text)
    if not isinstance(data, list):
        example = '[["n00015388"], ["n02084071"]]'
        raise TaxonomyError(f"{path}:1: anchors are a list of synset ids per tier, like {example}")
    lines = json_lines(text)
    for tier, entries in enumerate(data):
        if entries is not None and not isinstance(entries, list):
            line = line_of((tier,), lines)
            raise TaxonomyError(f"{path}:{line}: the anchors of tier {tier} must be a list, or null for none")
        for i, entry in enumerate(entries or []):
            if not (isinstance(entry, str) or _is_anchor(entry)):
                line = line_of((tier, i), lines)
                text = f"{path}:{line}: anchor {i} of tier {tier} must be a synset id, or an object with"
                raise TaxonomyError(f"{text} id, name and under (text) and of (a list of synset ids)")
    return data


def _is_anchor(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(value, list) and all(isinstance(synset, str) for synset in value)
        if key == "of"
        else isinstance(value, str) or (key == "under" and value is None)
        for key, value in entry.items()
    )


def _pins(texts: Iterable[str], names: Sequence[str]) -> Mapping[str, str]:
    pins = {}
    for text in texts:
        name, _, synset = text.rpartition("=")
        if not name or not _SYNSET.fullmatch(synset):
            raise typer.BadParameter(f"--pin {text!r} is not NAME=SYNSET; write for example crane=n03126707")
        if name not in names:
            raise typer.BadParameter(f"--pin {text!r}: {name!r} is not among the class names")
        pins[name] = synset
    return pins


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list with their numbers, without blank ones and those that start with #."""
    lines = enumerate(files.read_text(path).splitlines(), start=1)
    found = [
        (number, line.strip()) for number, line in lines if line.strip() and not line.lstrip().startswith("#")
    ]
    if not found:
        raise TaxonomyError(f"{path}:1: the list is empty; write one class a line")
    return found


def _read_ids(path: Path) -> dict[str, str]:
    """The first word of each line, and what follows: a comment or a name."""
    ids: dict[str, str] = {}
    for number, line in _read_lines(path):
        synset, rest = [*line.split(maxsplit=1), ""][:2]
        if not _SYNSET.fullmatch(synset):
            raise TaxonomyError(f"{path}:{number}: {synset!r} is no synset id; they look like n02084071")
        if synset in ids:
            raise TaxonomyError(f"{path}:{number}: {synset} is listed more than once; a class stands once")
        ids[synset] = rest.strip()
    return ids


def _print_senses(choices: Sequence[SenseChoice]) -> None:
    """One line a name with its sense, marked where it is doubtful, and one for each rejected sense."""
    for choice in choices:
        chosen = choice.synset
        sense = f"{chosen.id} {chosen.name}: {chosen.definition}"
        mark = ("? " if choice.doubtful else "", "bold yellow")
        _print(Text.assemble(mark, (choice.name, "bold"), f" = {sense}"))
        if choice.note:
            _print(Text(f"  {choice.note}", "yellow"))
        for other in choice.rejected:
            _print(Text(f"  not {other.id} {other.name}: {other.definition}", "dim"))
    if doubtful := [choice for choice in choices if choice.doubtful]:
        names = "name" if len(choices) == 1 else "names"
        told = f" {len(doubtful)} of {len(choices)} {names} may mean something else: look at these"
        _print(Text.assemble(("?", "yellow"), told))
    if any(choice.rejected for choice in choices):
        _print("another sense: --pin NAME=SYNSET")


# ---------------------------------------------------------------- show


@app.command()
def show(
    taxonomy: Annotated[
        str, typer.Argument(metavar="NAME_OR_PATH", help="A bundled name, a file or a folder.")
    ],
    tier: Annotated[int | None, typer.Option(min=0, help="The finest tier to draw.")] = None,
    depth: Annotated[
        int | None,
        typer.Option(min=0, help="Draw every node of the tree down to this depth, not only classes."),
    ] = None,
    leaves: Annotated[bool, typer.Option("--leaves", help="Draw the leaves as well.")] = False,
) -> None:
    """Draw a taxonomy with the number of leaves under each class."""
    tree = _load(taxonomy)
    if tier is not None and tier >= tree.num_tiers:
        raise typer.BadParameter(
            f"tier {tier} does not exist; this taxonomy has tiers 0 to {tree.num_tiers - 1}"
        )
    if tier is not None and depth is not None:
        raise typer.BadParameter("--tier draws classes and --depth draws nodes; give one of them")
    if depth is None:
        last = tree.num_tiers - 1 if leaves or tree.num_tiers == 1 else tree.num_tiers - 2
        _print(_draw_tiers(tree, last if tier is None or leaves else tier))
    else:
        _print(_draw_nodes(tree, depth, leaves))


def _load(name_or_path: str) -> Taxonomy:
    if name_or_path not in files.bundled() and not Path(name_or_path).exists():
        known = ", ".join(files.bundled())
        raise typer.BadParameter(f"{name_or_path!r} is no bundled taxonomy ({known}), file or folder")
    return files.load_taxonomy(name_or_path)


def _title(tree: Taxonomy) -> Text:
    return Text.assemble((tree.name, "bold"), f"  tiers of {' / '.join(map(str, tree.num_classes))}")


def _branch(node: Node, count: int, is_leaf: bool) -> Text:
    return Text(node.name) if is_leaf else Text.assemble(node.name, (f" {count}", "dim"))


def _draw_tiers(tree: Taxonomy, last: int) -> Tree:
    """The classes of tiers 0..last; a class that serves in several tiers is drawn once."""
    drawing = Tree(_title(tree))
    known = set(tree.leaves)
    branches: dict[str, Tree] = {}  # by id of the class
    for tier in range(last + 1):
        counts = _leaf_counts(tree, tier)
        uppers = tree.parent_classes(tier).tolist() if tier else [0] * len(counts)
        above = [branches[node.id] for node in tree.classes(tier - 1)] if tier else [drawing]
        for node, count, upper in zip(tree.classes(tier), counts, uppers, strict=True):
            if node.id not in branches:
                branches[node.id] = above[upper].add(_branch(node, count, node.id in known))
    return drawing


def _leaf_counts(tree: Taxonomy, tier: int) -> list[int]:
    counts = [0] * tree.num_classes[tier]
    for i in tree.projection(tier).tolist():
        counts[i] += 1
    return counts


def _draw_nodes(tree: Taxonomy, depth: int, leaves: bool) -> Tree:
    """Every node down to a depth; leaves only where they are asked for."""
    ids = [node.id for node in tree.nodes]
    counts = [0] * len(ids)
    known = set(tree.leaves)
    for i in range(len(ids) - 1, -1, -1):
        counts[i] += ids[i] in known
        if i:
            counts[tree.parents[i]] += counts[i]
    drawing = Tree(_title(tree))
    branches: dict[int, Tree] = {}
    for i, node in enumerate(tree.nodes):
        is_leaf = node.id in known
        if tree.depth(node.id) <= depth and (leaves or not is_leaf):
            upper = branches[int(tree.parents[i])] if i else drawing
            branches[i] = upper.add(_branch(node, counts[i], is_leaf))
    return drawing


# ---------------------------------------------------------------- check


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(exists=True, metavar="FILE", help="A .json or .csv file, or a folder.")
    ],
) -> None:
    """Check a taxonomy; prints a summary, or FILE:LINE: message for everything that is wrong."""
    if file.is_dir():
        tree: Taxonomy | None
        problems: list[str] = []
        try:
            tree = from_folder(file)
        except TaxonomyError as error:
            tree, problems = None, [str(error)]
    else:
        tree, problems = files.examine(file)
    if tree is None:
        for problem in problems:
            print(visible(clipped(problem)))
        raise typer.Exit(1)
    _print(f"{file}: a good taxonomy of {len(tree.leaves)} leaves and {len(tree.nodes)} nodes")
    table = Table()
    for heading in ("tier", "classes", "leaves per class", "with one leaf"):
        table.add_column(heading, justify="right")
    table.add_column("for example", overflow="fold")
    for tier in range(tree.num_tiers):
        counts = _leaf_counts(tree, tier)
        smallest, largest = min(counts), max(counts)
        spread = str(smallest) if smallest == largest else f"{smallest} to {largest}"
        examples = ", ".join(node.name for node in tree.classes(tier)[:3])
        table.add_row(str(tier), str(len(counts)), spread, str(counts.count(1)), examples)
    _print(table)


def _print(value: str | Text | Tree | Table) -> None:
    PlainConsole().print(value, soft_wrap=not isinstance(value, Table))
