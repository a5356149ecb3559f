"""Keep a finished quickstart run's figures: the file that README's table is rendered from.

Usage: python benchmarks/quickstart.py RUN
Writes benchmarks/results/quickstart.json; the last line printed is its headline as one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgedistill.core.errors import EdgeDistillError
from edgedistill.core.files import read_json, write_json

RESULT = Path(__file__).with_name("results") / "quickstart.json"
HEADLINE = ("latency_change_pct", "throughput_ratio", "memory_change_pct", "bytes_change_pct", "retention_pct")


def collect(run: Path) -> dict[str, Any]:
    """Comparison and verdict of a run, each stage's seconds, and the environment that it was measured in.

    Raises:
        InputError: the run is not finished.
    """
    bench = read_json(run / "50-bench" / "manifest.json")
    comparison = read_json(run / "60-gate" / "comparison.json")
    manifests = [read_json(path) for path in sorted(run.glob("*/manifest.json"))]
    return {
        "schema_version": 1,
        "recipe": comparison["run"],
        "measured": bench["finished"],
        "environment": bench["environment"],
        "seconds": {manifest["stage"]: manifest["seconds"] for manifest in manifests},
        "verdict": read_json(run / "60-gate" / "verdict.json"),
        "comparison": comparison,
    }


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The verdict and, of each released artifact and target, its change against the teacher."""
    rows = [row for row in result["comparison"]["rows"] if row["release"]]
    return {
        "verdict": result["verdict"]["outcome"],
        "seconds": round(sum(result["seconds"].values()), 1),
        "release": [{name: row[name] for name in ("model", "target", *HEADLINE)} for row in rows],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/quickstart.py RUN")
    try:
        found = collect(Path(sys.argv[1]))
    except EdgeDistillError as e:
        sys.exit(f"{e}; run the recipe to its end first")
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, found)
    print(json.dumps(headline(found)))
