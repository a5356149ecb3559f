"""Write the JSON Schema of verdict.json from the nouns.

Usage: python scripts/render_schema.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedistill.core.budget import Verdict
from edgedistill.core.files import write_json

SCHEMA = Path(__file__).resolve().parents[1] / "edgedistill" / "gate" / "verdict.schema.json"


def schema() -> dict[str, Any]:
    """The schema of a verdict as it is written."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Verdict.model_json_schema(mode="serialization")


if __name__ == "__main__":
    write_json(SCHEMA, schema())
