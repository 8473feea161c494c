"""Taxonomies on disk: JSON with a version, tables and folder trees, and errors that point at the line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taxonomy import Taxonomy, TaxonomyError, from_csv, from_folder, load_taxonomy
from taxonomy.files import MAX_TEXT, bundled, examine
from taxonomy.json_document import dumps, json_lines
from taxonomy.validation import MAX_PROBLEMS

TWELVE = """kingdom,kind,leaf,id
animal,dog,pug,x01
animal,dog,poodle,x02
animal,dog,collie,x03
animal,fish,eel,x04
animal,fish,carp,x05
plant,tree,oak,x06
plant,tree,elm,x07
plant,food,rice,x08
thing,food,cake,x09
thing,food,soup,x10
thing,tool,saw,x11
thing,moon,moon,x12
"""


@pytest.fixture
def twelve(tmp_path: Path) -> Taxonomy:
    return from_csv(write(tmp_path, "twelve.csv", TWELVE))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def document(**changes: Any) -> dict[str, Any]:
    nodes = [{"id": "r", "name": "all", "parent": None}]
    nodes += [{"id": "a", "name": "animal", "parent": "r"}, {"id": "p", "name": "plant", "parent": "r"}]
    nodes += [{"id": "d", "name": "dog", "parent": "a"}, {"id": "f", "name": "fish", "parent": "a"}]
    base: dict[str, Any] = {"format": "hierclass-taxonomy", "version": 1, "name": "small", "nodes": nodes}
    base |= {"leaves": ["d", "f", "p"], "tiers": [["a", "p"], ["d", "f", "p"]]}
    return {**base, **changes}


def message(path: Path) -> str:
    with pytest.raises(TaxonomyError) as caught:
        load_taxonomy(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


# ---------------------------------------------------------------- tables


def test_a_table_becomes_a_tree_with_a_tier_per_column(twelve: Taxonomy) -> None:
    assert twelve.name == "twelve"
    assert twelve.num_classes == (3, 7, 12)
    assert twelve.leaves == tuple(f"x{i:02}" for i in range(1, 13))
    assert twelve.projection(0).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert twelve.projection(1).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 6]
    assert [node.id for node in twelve.classes(0)] == ["animal", "plant", "thing"]
    assert [node.id for node in twelve.path("x08")] == ["plant", "plant/food", "x08"]


def test_a_name_that_stands_in_two_places_gets_its_parents_name(twelve: Taxonomy) -> None:
    assert [node.name for node in twelve.classes(1)] == [
        *("dog", "fish", "tree", "food (plant)", "food (thing)", "tool", "moon")
    ]


def test_a_leaf_repeated_to_its_left_is_its_own_class_there(twelve: Taxonomy) -> None:
    assert [node.id for node in twelve.path("x12")] == ["thing", "x12", "x12"]


def test_a_group_and_a_leaf_in_it_may_share_a_name(tmp_path: Path) -> None:
    tree = from_csv(write(tmp_path, "t.csv", "kind,leaf\ndog,dog\ndog,pug\nfish,fish\n"))
    assert [node.name for node in tree.classes(0)] == ["dog", "fish"]
    assert [node.name for node in tree.classes(1)] == ["dog (dog)", "pug", "fish"]


def test_as_many_parents_are_named_as_it_takes(tmp_path: Path) -> None:
    text = "a,b,leaf\nold,big,cup\nnew,big,cup\nnew,red,cup\n"
    tree = from_csv(write(tmp_path, "t.csv", text))
    assert [node.name for node in tree.classes(2)] == ["cup (big, old)", "cup (big, new)", "cup (red, new)"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_a_byte_order_mark_are_recognised(tmp_path: Path, separator: str) -> None:
    text = "\ufeff" + TWELVE.replace(",", separator).replace("\n", "\r\n")
    assert from_csv(write(tmp_path, "t.csv", text)).num_classes == (3, 7, 12)


def test_ids_are_slugs_of_the_path_and_never_collide(tmp_path: Path) -> None:
    text = "kind,leaf\nIce Cream,Rum & Raisin\nice-cream,Éclair\nplum,plum\n"
    tree = from_csv(write(tmp_path, "t.csv", text))
    assert tree.leaves == ("ice-cream/rum-raisin", "ice-cream-2/éclair", "plum")


def test_definitions_may_have_a_column(tmp_path: Path) -> None:
    text = 'definition,kind,leaf\n"small, flat",dog,pug\n,dog,poodle\n'
    tree = from_csv(write(tmp_path, "t.csv", text))
    assert [node.definition for node in tree.classes(1)] == ["small, flat", ""]


def test_a_table_of_one_column_is_a_flat_taxonomy(tmp_path: Path) -> None:
    assert from_csv(write(tmp_path, "t.csv", "leaf\npug\noak\n")).num_classes == (2,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "FILE:1: the table is empty"),
        ("kind,leaf\n", "FILE:1: the table has a header but no rows"),
        ("kind,leaf\ndog,pug\n\ndog,pug\n", "FILE:4: leaf 'pug' stands in line 2 already"),
        ("kind,leaf\ndog,pug,x\n", "FILE:2: 3 cells, but the header has 2"),
        ("kind,leaf\ndog,pug\ndog\n", "FILE:3: 1 cells, but the header has 2"),
        ("kind,leaf\n,pug\n", "FILE:2: leaf 'pug' has no class in tier 'kind'"),
        ("kind,leaf\ndog,\n", "FILE:2: no leaf: its column 'leaf' is blank"),
        ("kind,leaf,id\ndog,pug,1\ndog,poodle,1\n", "FILE:3: duplicate id '1', used in line 2 already"),
        ("kind,leaf,id\ndog,pug,\n", "FILE:2: leaf 'pug' has no id"),
        ("kind,,leaf\ndog,x,pug\n", "FILE:1: column 2 has no name"),
        ("kind,Kind\ndog,pug\n", "FILE:1: two columns are called 'Kind'"),
        ("id\n1\n", "FILE:1: no tier columns"),
        (
            "leaf,kind\npug,dog\npoodle,dog\n",
            "FILE:1: no two leaves share a class in tier 'leaf' but some in 'kind'",
        ),
        (",".join(f"c{i}" for i in range(3000)), "FILE:1: 3000 tier columns; a taxonomy has at most 64"),
        ('kind,leaf\n"two\nlines",pug\n"dog,poodle\n', "FILE:4: not a table"),
        ('kind,leaf\n"two\nlines",pug\ndog,\n', "FILE:4: no leaf"),
        ("kind,leaf\ndog,p\x07ug\n", "FILE:2: an unprintable character"),
    ],
)
def test_a_wrong_table_is_refused_at_its_line(tmp_path: Path, text: str, words: str) -> None:
    assert message(write(tmp_path, "t.csv", text)).startswith(words)


def test_all_problems_of_a_table_are_found_at_once(tmp_path: Path) -> None:
    taxonomy, problems = examine(write(tmp_path, "t.csv", "kind,leaf\n,pug\ndog,\ndog,poodle\n"))
    assert taxonomy is None
    assert [problem.split(":")[1] for problem in problems] == ["2", "3"]


# ---------------------------------------------------------------- JSON


def test_a_saved_taxonomy_loads_as_an_equal_one(twelve: Taxonomy, tmp_path: Path) -> None:
    twelve.save(tmp_path / "t.json")
    assert load_taxonomy(tmp_path / "t.json") == twelve
    assert {path.name for path in tmp_path.iterdir()} == {"t.json", "twelve.csv"}


def test_a_saved_taxonomy_has_one_node_a_line_and_readable_letters(tmp_path: Path) -> None:
    tree = from_csv(write(tmp_path, "t.csv", "kind,leaf\nVögel,Mäusebussard\nVögel,灰雁\n"))
    lines = dumps(tree.to_dict()).splitlines()
    assert sum(line.startswith('    {"id": ') for line in lines) == len(tree.nodes)
    assert '"name": "灰雁"' in dumps(tree.to_dict())
    assert json.loads(dumps(tree.to_dict())) == tree.to_dict()


def test_saving_over_a_file_replaces_it_whole(twelve: Taxonomy, tmp_path: Path) -> None:
    path = write(tmp_path, "t.json", "old " * 100_000)
    twelve.save(path)
    assert load_taxonomy(path) == twelve


def test_a_saved_taxonomy_is_synced_before_it_has_its_name(
    twelve: Taxonomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, sync, path = list[int](), os.fsync, tmp_path / "t.json"

    def noted(descriptor: int) -> None:
        sizes.append(-1 if path.exists() else os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    twelve.save(path)
    assert sizes == [path.stat().st_size, -1]  # the file, and then the folder with its name


def test_saving_where_one_cannot_is_one_line(twelve: Taxonomy, tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match="cannot be written"):
        twelve.save(tmp_path / "missing" / "t.json")
    with pytest.raises(TaxonomyError, match="choose a name that ends in"):
        twelve.save(tmp_path / "t.csv")


NODES = document()["nodes"]


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ({"format": "other"}, 2, "this is no taxonomy: \"format\" is 'other'"),
        ({"version": 2}, 3, "made by a newer version of hierclass (format 2, known is 1); update hierclass"),
        ({"version": "1"}, 3, "\"version\" is '1'; it must be 1"),
        ({"nodes": {}}, 5, '"nodes" must be a list'),
        ({"nodes": [*NODES, {"id": "x", "name": "x", "parent": None}]}, 31, "two roots ('r', 'x')"),
        (
            {"nodes": [*NODES, {"id": "x", "name": "x", "parent": "q"}]},
            34,
            "node 'x' has the unknown parent 'q'",
        ),
        (
            {"nodes": [*NODES, {"id": "d", "name": "x", "parent": "a"}]},
            32,
            "duplicate id 'd' (nodes 3 and 5)",
        ),
        ({"nodes": [*NODES, {"id": "x", "name": "dog", "parent": "a"}]}, 33, "duplicate display name 'dog'"),
        ({"nodes": [*NODES, {"id": "x", "parent": "a"}]}, 31, 'node 5 has no "name"'),
        ({"nodes": [*NODES, {"id": "x", "name": 7, "parent": "a"}]}, 33, '"name" of node 5 must be text'),
        (
            {
                "nodes": [
                    *NODES,
                    {"id": "x", "name": "x", "parent": "y"},
                    {"id": "y", "name": "y", "parent": "x"},
                ]
            },
            34,
            "the parents form a cycle (x -> y -> x)",
        ),
        (
            {"nodes": [NODES[0], NODES[3], NODES[1], NODES[2], NODES[4]]},
            11,
            "'d' stands before its parent 'a'",
        ),
        ({"leaves": ["d", "f", "p", "a"]}, 36, "leaf 'a' has children ('d', 'f')"),
        ({"leaves": ["d", "p"]}, 26, "node 'f' has no children but is not in leaves"),
        ({"leaves": "dfp"}, 32, '"leaves" must be a list'),
        ({"tiers": [["a"], ["d", "f", "p"]]}, 38, "leaf 'p' has no class in tier 0"),
        ({"tiers": [["d", "f", "p"], ["a", "p"], ["d", "f", "p"]]}, 44, "tiers do not nest: 'a' of tier 1"),
        ({"tiers": [["a", "p"], []]}, 42, "tier 1 is empty"),
        ({"tiers": [["a", 3], ["d", "f", "p"]]}, 40, "entry 1 of tier 0 must be a node id"),
    ],
)
def test_a_wrong_document_is_refused_at_its_line(
    tmp_path: Path, changes: dict[str, Any], line: int, words: str
) -> None:
    path = write(tmp_path, "t.json", json.dumps(document(**changes), indent=1))
    assert message(path).startswith(f"FILE:{line}: ")
    assert words in message(path)
    with pytest.raises(TaxonomyError) as caught:
        Taxonomy.from_dict(document(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "FILE:1: not valid JSON"),
        ('{\n"format": "hierclass-taxonomy",\n}', "FILE:3: not valid JSON"),
        ("[1]", "FILE:1: a taxonomy is a JSON object"),
        ("[" * 100_000, "FILE:1: nested too deeply"),
        ("9" * 10_000, "FILE:1: it holds an endless number"),
        ('{"format": "hierclass-taxonomy", "version": 1}', 'FILE:1: "name" is missing'),
    ],
)
def test_a_file_that_is_no_document_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    assert message(write(tmp_path, "t.json", text)).startswith(words)


def test_files_of_other_things_are_refused_by_their_size(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "a," * 100_000 + "\n")
    assert message(path) == "FILE:1: 100001 tier columns; a taxonomy has at most 64"
    os.truncate(path, MAX_TEXT + 1)
    assert message(path).startswith("FILE:1: longer than 64 MiB")
    path = write(tmp_path, "u.csv", "kind,leaf\n" + ",\n,x\n" * 10_000)
    assert MAX_PROBLEMS <= len(examine(path)[1]) < MAX_PROBLEMS + 10
    assert len(message(write(tmp_path, "v.csv", f"kind,leaf\n{'x' * 100_000},\n"))) < 700


def test_trees_of_many_tiers_or_of_great_depth_are_refused(tmp_path: Path) -> None:
    tiers = [["a"]] * 100
    assert "100 tiers; a taxonomy has at most 64" in message(
        write(tmp_path, "t.json", json.dumps(document(tiers=tiers)))
    )
    nodes = [{"id": f"n{i}", "name": f"n{i}", "parent": f"n{i - 1}" if i else None} for i in range(1000)]
    deep = document(nodes=nodes, leaves=["n999"], tiers=[["n999"]])
    assert "more than 256 nodes above it" in message(write(tmp_path, "d.json", json.dumps(deep)))


def test_thousands_of_classes_of_one_spelling_get_ids_of_their_own(tmp_path: Path) -> None:
    rows = "".join(f"k,{chr(0x2600 + i % 200)}{chr(0x2600 + i // 200)}\n" for i in range(5000))
    taxonomy = from_csv(write(tmp_path, "t.csv", f"kind,leaf\n{rows}"))
    assert taxonomy.leaves[:2] == ("k/class", "k/class-2")
    assert taxonomy.leaves[-1] == "k/class-5000"


def test_other_encodings_are_refused_at_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("kind,leaf\nVögel,pug\n".encode("latin-1"))
    assert message(path) == "FILE:2: not UTF-8 text; save the file as UTF-8"


def test_definition_and_the_roots_parent_may_be_left_out() -> None:
    data = document()
    del data["nodes"][0]["parent"]
    assert Taxonomy.from_dict(data).node("r").definition == ""


@settings(suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.full
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    st.sampled_from([None, 0, 1]),
)
def test_lines_of_any_json_text_are_found(data: Any, indent: int | None) -> None:
    text = json.dumps(data, indent=indent)
    lines = json_lines(text)
    assert lines[()] == 1
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
    if isinstance(data, dict):
        assert {place[0] for place in lines if len(place) == 1} == set(data)


@pytest.mark.full
@given(st.recursive(st.none() | st.text(max_size=3), lambda i: st.lists(i) | st.dictionaries(st.text(), i)))
def test_any_document_is_refused_without_another_kind_of_error(data: Any) -> None:
    for changes in ({"nodes": data}, {"leaves": data}, {"tiers": data}, {"nodes": [data]}, {"tiers": [data]}):
        with pytest.raises(TaxonomyError):
            Taxonomy.from_dict(document(**changes))


# ---------------------------------------------------------------- names


def test_an_unknown_name_is_answered_with_the_bundled_ones() -> None:
    with pytest.raises(TaxonomyError, match="no such file, nor a bundled taxonomy"):
        load_taxonomy("no-such-taxonomy")


def test_bundled_taxonomies_load_by_name() -> None:
    for name in bundled():
        assert load_taxonomy(name).name == name


# ---------------------------------------------------------------- folders


def folders(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        else:
            path.mkdir(parents=True, exist_ok=True)
    return root


def test_a_folder_tree_becomes_a_tree_with_a_tier_per_depth(tmp_path: Path) -> None:
    root = folders(
        tmp_path / "zoo", "animal/dog/pug/1.jpg", "animal/dog/great_dane/1.jpg", "plant/oak/elm/1.jpg"
    )
    tree = from_folder(root)
    assert tree.name == "zoo"
    assert tree.num_classes == (2, 2, 3)
    assert tree.leaves == ("animal/dog/great_dane", "animal/dog/pug", "plant/oak/elm")
    assert [node.name for node in tree.path(0)] == ["animal", "dog", "great dane"]


def test_a_leaf_that_ends_early_is_its_own_class_further_down(tmp_path: Path) -> None:
    tree = from_folder(folders(tmp_path, "animal/dog/pug/1.jpg", "fish/1.jpg"))
    assert [node.id for node in tree.path("fish")] == ["fish", "fish", "fish"]
    assert tree.num_classes == (2, 2, 2)


def test_a_folder_without_images_and_folders_is_a_leaf(tmp_path: Path) -> None:
    assert from_folder(folders(tmp_path, "a/b", "a/c")).leaves == ("a/b", "a/c")


def test_hidden_folders_and_loose_files_are_left_out(tmp_path: Path) -> None:
    root = folders(
        tmp_path, ".cache/x/1.jpg", "a/.thumbs/1.jpg", "a/1.jpg", "b/1.jpg", "c/d/1.jpg", "c/readme.txt"
    )
    folders(root, "cover.jpg")
    assert from_folder(root).leaves == ("a", "b", "c/d")


def test_folders_of_nas_and_desktops_are_no_classes(tmp_path: Path) -> None:
    root = folders(
        tmp_path, "@eaDir/a/1.jpg", "a/@EADIR/1.jpg", "b/#recycle/1.jpg", "$RECYCLE.BIN/1", "lost+found/x"
    )
    assert from_folder(root).leaves == ("a", "b")


def test_links_that_lead_back_up_are_not_followed_and_others_are(tmp_path: Path) -> None:
    root = folders(tmp_path / "zoo", "a/b/1.jpg")
    folders(tmp_path, "elsewhere/1.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    (root / "a" / "top").symlink_to(tmp_path)
    (root / "a" / "e").symlink_to(tmp_path / "elsewhere")
    assert from_folder(root).leaves == ("a/b", "a/e")


def test_an_empty_folder_is_answered_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match="no class folders in it; expected folders like"):
        from_folder(tmp_path)
    with pytest.raises(TaxonomyError, match="no class folders in it"):
        from_folder(folders(tmp_path, "1.jpg"))
    with pytest.raises(TaxonomyError, match="no such folder"):
        from_folder(tmp_path / "missing")


def test_a_folder_of_images_and_folders_is_no_leaf(tmp_path: Path) -> None:
    tree = from_folder(folders(tmp_path, "dog/1.jpg", "dog/pug/1.jpg", "cat/1.jpg"))
    assert tree.leaves == ("cat", "dog/pug")
    assert tree.tiers[0] == ("cat", "dog")


def test_load_reads_folders_and_tables_too(tmp_path: Path) -> None:
    table = write(tmp_path, "t.csv", TWELVE)
    assert load_taxonomy(table) == from_csv(table)
    root = folders(tmp_path / "zoo", "a/1.jpg", "b/1.jpg")
    assert load_taxonomy(root) == from_folder(root)
