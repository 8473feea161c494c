"""Finding the leaf that a label means: the name of a class folder, or the text in a table of images."""

import re
from collections.abc import Sequence

from taxonomy.tree import Taxonomy


def key(label: str) -> str:
    """Normalise a label for comparison: "Golden-Retriever" and "golden_retriever" have the same key."""
    return " ".join(part for part in re.split(r"[\s_-]+", label.casefold()) if part)


def leading_id(label: str) -> str | None:
    """Return the synset id that a label is or starts with, as in "n02085620-Chihuahua"; None where it has none."""
    found = re.match(r"n\d{8}(?=$|[\s_.,:-])", label)
    return found[0] if found else None


class LeafNames:
    """Finds the leaf that a label names: by id or display name, else by how the name reads.

    Case, spaces, underscores and hyphens make no difference where that is not ambiguous; nor does what was added to
    a name to make it unique, "other" before it or a bracket behind it. Last, the synset id before a name decides, as
    in "n02085620-Chihuahua".
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        """Index the leaves of a taxonomy."""
        self.taxonomy = taxonomy
        names = [taxonomy.node(leaf).name for leaf in taxonomy.leaves]
        self._exact: dict[str, int] = {}
        for index, name in enumerate(names):
            for text in (name.replace(" ", "_"), name):
                self._exact.setdefault(text, index)
        self._exact.update({leaf: index for index, leaf in enumerate(taxonomy.leaves)})
        self._read: list[dict[str, set[int]]] = [{}, {}]  # whole names before shortened ones
        for index, name in enumerate(names):
            short = re.sub(r" \([^()]*\)$", "", name.removeprefix("other "))
            for found, text in zip(self._read, (name, short), strict=True):
                found.setdefault(key(text), set()).add(index)

    def find(self, label: str) -> int | None:
        """Return the leaf index of a label, or None."""
        if label in self._exact:
            return self._exact[label]
        for read in self._read:
            found = read.get(key(label), set())
            if len(found) == 1:
                return next(iter(found))
        return self._exact.get(leading_id(label) or "")

    def find_folder(self, path: Sequence[str]) -> int | None:
        """Return the leaf index of the deepest folder of a path that names a leaf, or None.

        Leaves of a tree of folders have several folders in their id, "animal/dog": the longer run counts first.
        """
        for end in range(len(path), 0, -1):
            for start in range(end):
                found = self.find("/".join(path[start:end]))
                if found is not None:
                    return found
        return None

    def missing(self, label: str) -> str:
        """Return the message for a label that is no leaf; it names some leaves."""
        leaves = [self.taxonomy.node(leaf).name for leaf in self.taxonomy.leaves]
        some = ", ".join(leaves[:3]) + (", …" if len(leaves) > 3 else "")
        return f"label {label!r} is no leaf of taxonomy {self.taxonomy.name!r}; its leaves are {some}"
