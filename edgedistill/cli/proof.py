"""What `verify` and `diagnose` show."""

from __future__ import annotations

from typing import Any

from edgedistill.cli.show import table


def verified(found: dict[str, Any]) -> str:
    """Every check with what was found, then the bounds and what the engine is known not to follow."""
    rows = [[check["name"], "holds" if check["holds"] else "FAILS", check["found"]] for check in found["checks"]]
    failed = [check["name"] for check in found["checks"] if not check["holds"]]
    bounds = found["bounds"]
    lines = [
        table(("check", "result", "found"), rows),
        "",
        f"Bounds of {found['precision']}: KLD up to {bounds['max_kld_nats']:g} nats, top-1 of at least "
        f"{bounds['min_sure_top1_ratio']:.0%} where the model is sure. Intervals are at 95 %, over texts.",
        *(f"Known limit: {limit}." for limit in found["limits"]),
        f"{found['artifact']} is {'not ' if failed else ''}equal to {found['against']} within these bounds"
        + (f": {', '.join(failed)}" if failed else "."),
    ]
    return "\n".join(lines)


def diagnosed(found: dict[str, Any]) -> str:
    """The first place where the two part, then the others; how far they part at each place of the model."""
    rows = [
        [stage["place"], _number(stage["error"]), _number(stage["explained"]), "parts" if stage["parts"] else ""]
        for stage in found["stages"]
    ]
    lines = [table(("place", "relative error", "explained", "result"), rows), ""]
    lines += [f"Note: {note}." for note in found["notes"]]
    if found["sound"]:
        lines.append(f"{found['artifact']} parts nowhere from {found['against']}")
        return "\n".join(lines)
    first, *others = found["findings"]
    lines.append(f"First parts at {first['place']}: {first['sentence']}")
    lines += [f"Then {other['place']}: {other['sentence']}" for other in others[:3]]
    if len(others) > 3:
        lines.append(f"and at {len(others) - 3} further places")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.2g}"
