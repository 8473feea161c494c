"""What `hierclass compress` saves, for every structure that `benchmarks/structures.py` has trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from structures_rows import ROWS

from hierclass.checkpoints.checkpoint import load_checkpoint, save_checkpoint, stored_dtype
from hierclass.checkpoints.compress import ROUNDS, compare, compress
from hierclass.files import WEIGHTS_FILE

Result = dict[str, Any]


def measure_compressed(results: Result, work: Path) -> Result:
    """Compress every trained nested network to each lower level: bytes, and times beside the whole network.

    Networks that are not in the folder `work` are left out.
    """
    rows: list[Result] = []
    for row in results["rows"]:
        model = work / f"{row['name']}-{row['seed']}" / "model"
        known = any(found["name"] == row["name"] for found in rows)
        if known or not ROWS[row["name"]].timed or not (model / WEIGHTS_FILE).exists():
            continue
        for level in range(len(row["levels"]) - 1):
            rows.append({"name": row["name"], "level": level, **_compressed(model, level)})
    return {"rounds": ROUNDS, "rows": rows}


def _compressed(model: Path, level: int) -> Result:
    whole = load_checkpoint(model)
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small"
        save_checkpoint(small, compress(whole, level), dtype=stored_dtype(model))
        all_of_it, inside, alone = compare(model, whole, small, load_checkpoint(small))
    return {
        "bytes": alone.bytes,
        "bytes_ratio": alone.bytes / all_of_it.bytes,
        "ratio": {str(batch): alone.seconds[batch] / time for batch, time in all_of_it.seconds.items()},
        "inside_ratio": {str(batch): inside.seconds[batch] / t for batch, t in all_of_it.seconds.items()},
    }
