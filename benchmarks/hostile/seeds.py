"""Small whole files of every kind that is read, which fuzzing changes: pictures, archives, tables, models."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageFilter, features

from hierclass.checkpoints.checkpoint import Checkpoint, build, save_checkpoint
from hierclass.checkpoints.description import Architecture
from hierclass.decisions.prediction import Step
from hierclass.export.graphs import write_graphs
from hierclass.images.preprocessing import Preprocessing
from hierclass.labelling.rows import Row, schema
from hierclass.labelling.table_writers import write_table
from hostile.kinds import dng, psd
from taxonomy import Node, Taxonomy

_SIZE = (61, 47)


def write_pictures(folder: Path) -> list[Path]:
    """Write small pictures of every format that is read, in several modes and compressions."""
    base = Image.effect_noise(_SIZE, 60).filter(ImageFilter.GaussianBlur(2)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    frames = [base.rotate(90 * turn) for turn in range(3)]
    wanted: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "plain.jpg": (base, {}),
        "turned.jpg": (base, {"exif": exif, "comment": b"words", "icc_profile": b"profile" * 40}),
        "progressive.jpg": (base, {"progressive": True}),
        "grey.jpg": (base.convert("L"), {}),
        "cmyk.jpg": (base.convert("CMYK"), {}),
        "plain.png": (base, {"exif": exif}),
        "palette.png": (base.quantize(16), {"transparency": 3}),
        "alpha.png": (base.convert("RGBA"), {}),
        "moving.png": (base, {"save_all": True, "append_images": frames}),
        "deep.png": (base.convert("I;16"), {}),
        "plain.gif": (base, {"comment": b"words"}),
        "moving.gif": (base, {"save_all": True, "append_images": frames}),
        "plain.bmp": (base, {}),
        "palette.bmp": (base.quantize(16), {}),
        "plain.tif": (base, {"exif": exif}),
        "lzw.tif": (base, {"compression": "tiff_lzw"}),
        "deflate.tif": (base, {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (base, {"compression": "jpeg"}),
        "deep.tif": (base.convert("F"), {}),
        "plain.dib": (base, {}),
        "plain.tga": (base, {}),
        "runs.tga": (base.convert("RGBA"), {"rle": True}),
        "plain.ico": (base.resize((48, 48)), {}),
        "bitmap.ico": (base.resize((32, 32)), {"bitmap_format": "bmp"}),
        "plain.sgi": (base, {}),
        "plain.pcx": (base, {}),
        "palette.pcx": (base.quantize(16), {}),
        "plain.dds": (base.convert("RGBA"), {}),
        "packed.dds": (base.convert("RGBA"), {"pixel_format": "DXT5"}),
        "plain.ppm": (base, {}),
        "grey.pgm": (base.convert("L"), {}),
    }
    if features.check("webp"):
        wanted["plain.webp"] = base, {"exif": exif}
        wanted["exact.webp"] = base.convert("RGBA"), {"lossless": True}
        wanted["moving.webp"] = base, {"save_all": True, "append_images": frames}
    if features.check("jpg_2000"):
        wanted["plain.jp2"] = base, {}
        wanted["tiles.jp2"] = base, {"tile_size": (32, 32), "num_resolutions": 3}
    if features.check("avif"):
        wanted["plain.avif"] = base, {"exif": exif}
    for name, (image, how) in wanted.items():
        image.save(folder / name, **how)  # type: ignore[arg-type]
    preview = io.BytesIO()
    base.resize((320, 200)).save(preview, "JPEG")
    (folder / "camera.dng").write_bytes(dng(preview.getvalue(), orientation=6))
    (folder / "layers.psd").write_bytes(psd(_SIZE, count=4, layers=-1))
    pillow_heif.from_pillow(base).save(folder / "plain.heic")
    (folder / "text.ppm").write_bytes(b"P3\n# words\n3 2\n255\n" + b"1 2 3  " * 6)
    return sorted(folder.iterdir())


def write_archives(folder: Path) -> list[Path]:
    """Write tar, zip and Parquet files of small pictures."""
    pictures = []
    for number in range(4):
        stream = io.BytesIO()
        Image.effect_noise((24, 20), 40 + number).convert("RGB").save(stream, "JPEG")
        pictures.append(stream.getvalue())
    for name, form in (("ustar.tar", tarfile.USTAR_FORMAT), ("pax.tar", tarfile.PAX_FORMAT)):
        with tarfile.open(folder / name, "w", format=form) as tar:
            for number, data in enumerate(pictures):
                member = tarfile.TarInfo(f"{'a-long-name-' * (9 * (form == tarfile.PAX_FORMAT))}{number}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with tarfile.open(folder / "gnu.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number, data in enumerate(pictures):
            member = tarfile.TarInfo(f"{'a-long-name-' * 12}{number}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for name, how in (("stored.zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / name, "w", how) as packed:
            for number, data in enumerate(pictures):
                packed.writestr(f"{number}.jpg", data)
    table = pa.table({"image": [{"bytes": data, "path": None} for data in pictures], "label": range(4)})
    pq.write_table(table, folder / "struct.parquet", compression="zstd")
    plain = pa.table({"jpg": pa.array(pictures, pa.large_binary()), "name": ["a", "b", None, "d"]})
    pq.write_table(plain, folder / "plain.parquet", compression="none", row_group_size=2)
    pq.write_table(plain, folder / "snappy.parquet", compression="snappy", use_dictionary=False)
    return sorted(folder.iterdir())


def write_tables(folder: Path) -> list[Path]:
    """Write taxonomies as JSON and CSV, a table of labels, and tables of answers."""
    tree = small_tree()
    tree.save(folder / "tree.json")
    rows = "".join(f"{tier},{leaf},{leaf}-id\n" for tier, leaf in (("a", "b"), ("a", "c"), ("d", "e")))
    (folder / "tree.csv").write_text(f"kind,name,id\n{rows}", encoding="utf-8")
    (folder / "labels.csv").write_text("path,label\n1.jpg,a\n2.jpg,b\n3.jpg,a\n", encoding="utf-8")
    lines = [json.dumps({"path": f"{number}.jpg", "label": "ab"[number % 2]}) for number in range(4)]
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    steps = (Step("animal", "animal", 0.9),)
    answers = [Row(f"{number}.jpg", None, 0, 0, "asked", False, steps).to_dict(1) for number in range(4)]
    table = pa.Table.from_pylist(answers, schema(1)).append_column("corrected", [["pug", None, "oak", None]])
    for ending in ("csv", "jsonl", "parquet"):
        write_table(folder / f"answers.{ending}", [table], table.schema)
    return sorted(folder.iterdir())


def small_tree() -> Taxonomy:
    """A tree of 2 kinds and 4 leaves."""
    leaves, kinds = ["pug", "carp", "oak", "rice"], ["animal", "plant"]
    nodes = [Node(name, name) for name in ("root", *kinds, *leaves)]
    return Taxonomy(
        name="small", nodes=nodes, parents=[-1, 0, 0, 1, 1, 2, 2], leaves=leaves, tiers=[kinds, leaves]
    )


def write_models(folder: Path) -> list[Path]:
    """Write untrained models of two levels with graphs: slices, and a prefix with masks of its own."""
    torch.manual_seed(random.Random(0).randrange(1 << 30))
    tree = small_tree()
    for name, structure in (("slices", "slices"), ("prefix", "prefix")):
        architecture = Architecture(backbone="test_resnet", widths=(0.5, 1.0), structure=structure)
        network = build(architecture, tree, 32)
        checkpoint = Checkpoint(tree, architecture, Preprocessing(32), network=network)
        save_checkpoint(folder / name, checkpoint)
        write_graphs(folder / name, checkpoint)
    return sorted(folder.iterdir())
