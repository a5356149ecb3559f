"""A grid for each tensor within a budget: costs from calibration text, solved, corrected by real candidates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from edgedistill.core.errors import InputError
from edgedistill.export.pace import Pace
from edgedistill.quant.budget import Option, allocate, fastest, smallest
from edgedistill.quant.grids import BLOCK, grid_named
from edgedistill.quant.plan import EMBEDDING, HEAD, TABLES, Plan, multiplied

BOTH_FORMATS = ("Q4_0", "Q8_0")  # what GGUF and ONNX kernels both take as it is
GGUF_ALONE = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "Q8_0")
STACKED = re.compile(r"(.*\.self_attn)\.[qkv]_proj\.weight")
CANDIDATES = 3  # written and measured at most
PACED = 2  # more of them where the speed is measured, too, and may fall short
FACTORS = (0.2, 5.0)  # how far one measurement may move what layers cost beside tables


@dataclass(frozen=True)
class Candidate:
    """A plan that was written and measured: bytes of all that ships, KL divergence in nats per token, ns a token."""

    plan: Plan
    bytes: int
    kld: float
    ns: float = 0.0


@dataclass(frozen=True)
class Choice:
    """The best candidate, how many were measured, and how often each grid was chosen."""

    best: Candidate
    measured: int
    counts: Mapping[str, int]


def grouped(shapes: Mapping[str, tuple[int, ...]], *, stacked: bool) -> dict[str, tuple[str, ...]]:
    """Tensors that must have one grid, by a name for the group: a tied table, and stacked query, key and value.

    Vectors and matrices whose rows do not fill blocks have no grid and are left out.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name, shape in shapes.items():
        if len(shape) != 2 or shape[1] % BLOCK:
            continue
        found = STACKED.fullmatch(name) if stacked else None
        key = f"{found[1]}.qkv" if found else name
        groups[key] = (*groups.get(key, ()), name)
    return groups


def choose_precision(
    *,
    shapes: Mapping[str, tuple[int, ...]],
    costs: Mapping[str, Mapping[str, float]],
    formats: Sequence[str],
    max_bytes: int | None,
    overhead: int,
    attempt: Callable[[Plan], tuple[int, float, float]],
    pace: Pace | None = None,
) -> Choice:
    """The plan of the least measured KL divergence whose artifact, all that ships counted, is at most `max_bytes`.

    `costs` are nats by tensor and grid, `overhead` a guess of the bytes that are no matrix on a grid, which the first
    candidate corrects. `attempt` writes a plan and tells its bytes, KL divergence and, with `pace`, nanoseconds a
    token. What layers cost beside tables, and the time that is no matter of grids, are corrected by each measurement,
    and solved again.

    Raises:
        InputError: no plan fits; the message has the bytes that would, or the speed that can be reached.
    """
    groups = grouped(shapes, stacked="onnx" in formats)
    factor, tried = 1.0, list[Candidate]()
    while len(tried) < CANDIDATES + (PACED if pace else 0):
        options = _options(groups, shapes=shapes, costs=costs, formats=formats, factor=factor, pace=pace)
        if max_bytes is not None and (least := smallest(options) + overhead) > max_bytes:
            raise InputError(
                f"expected at least {least:,} bytes, which the smallest grids of {' and '.join(formats)} take, found "
                f"a budget of {max_bytes:,}; allow {-(-least // 100_000) / 10:.1f} MB, or cut layers or vocabulary"
            )
        room = sum(max(o.bytes for o in group) for group in options.values())
        room = room if max_bytes is None else max_bytes - overhead
        chosen = _solved(options, room, pace, known=tried)
        plan = _plan(groups, chosen)
        if plan in [candidate.plan for candidate in tried]:
            break
        found = Candidate(plan, *attempt(plan))
        right = found.bytes - sum(option.bytes for option in chosen.values())
        tried.append(found)
        if max_bytes is not None and right > overhead and found.bytes > max_bytes:
            tried.pop()
        overhead = right
        if pace is not None:
            pace = replace(pace, whole=found.ns - sum(option.ns for option in chosen.values()))
        tables = sum(option.cost for key, option in chosen.items() if set(groups[key]) & TABLES)
        layers = sum(option.cost for key, option in chosen.items() if not set(groups[key]) & TABLES)
        if layers > 0:
            factor *= min(max((found.kld - tables) / layers, FACTORS[0]), FACTORS[1])
    fitting = [c for c in tried if max_bytes is None or c.bytes <= max_bytes]
    within = [c for c in fitting if pace is None or c.ns <= pace.max_ns]
    if pace is not None and not within:
        raise _too_slow(pace, min(candidate.ns for candidate in fitting), how="the fastest candidate measured reached")
    best = min(within, key=lambda candidate: candidate.kld)
    grids = [best.plan.grid(name, shapes[name]) for names in groups.values() for name in names]
    return Choice(best, len(tried), {g: grids.count(g) for g in GGUF_ALONE if g in grids})


def grids_for(shape: tuple[int, ...], *, formats: Sequence[str]) -> tuple[str, ...]:
    """Grids that kernels of all `formats` have and whose blocks rows of a matrix fill."""
    known = BOTH_FORMATS if "onnx" in formats else GGUF_ALONE
    return tuple(grid for grid in known if shape[1] % grid_named(grid).block == 0)


def stored_bytes(grid: str, *, weights: int, form: str) -> int:
    """What `weights` of whole blocks take on a grid in a format; ONNX keeps scales in float32."""
    held = grid_named(grid)
    return weights // held.block * (held.bytes + 2 * (form == "onnx"))


def _solved(
    options: Mapping[str, Sequence[Option]], room: int, pace: Pace | None, *, known: Sequence[Candidate]
) -> dict[str, Option]:
    if pace is None:
        return allocate(options, max_bytes=room)
    max_ns = pace.max_ns - pace.whole
    quickest = fastest(options, max_bytes=room)
    if (ns := sum(option.ns for option in quickest.values())) <= max_ns:
        return allocate(options, max_bytes=room, max_ns=max_ns)
    if not known:  # measured times may yet be better than foretold: the fastest there is shows it
        return quickest
    best = min([ns + pace.whole, *(candidate.ns for candidate in known)])
    if best > pace.max_ns:
        raise _too_slow(pace, best, how="the fastest grids that fit reach")
    return quickest


def _too_slow(pace: Pace, ns: float, *, how: str) -> InputError:
    return InputError(
        f"expected a speed that this host reaches, found --min-tokens-per-s {1e9 / pace.max_ns:g}, where {how} "
        f"{1e9 / ns:.1f} tokens per second; ask for less, or cut layers or vocabulary"
    )


def _options(
    groups: Mapping[str, tuple[str, ...]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    costs: Mapping[str, Mapping[str, float]],
    formats: Sequence[str],
    factor: float,
    pace: Pace | None,
) -> dict[str, list[Option]]:
    options, busy = {}, multiplied(shapes)
    for key, names in groups.items():
        weights = sum(prod(shapes[name]) for name in names)
        weigh = 1.0 if set(names) & TABLES else factor
        options[key] = [
            Option(
                grid,
                max(stored_bytes(grid, weights=weights, form=form) for form in formats),
                weigh * sum(costs[name][grid] for name in names),
                ns=pace.ns(grid, weights=sum(busy.get(name, 0) for name in names)) if pace else 0.0,
            )
            for grid in grids_for(shapes[names[0]], formats=formats)
        ]
    return options


def _plan(groups: Mapping[str, tuple[str, ...]], chosen: Mapping[str, Option]) -> Plan:
    """The plan by names; a head that is no tensor of its own goes with the embedding."""
    grids = {name: chosen[key].grid for key, names in groups.items() for name in names}
    if EMBEDDING in grids:
        grids.setdefault(HEAD, grids[EMBEDDING])
    layers = [grid for name, grid in grids.items() if name not in TABLES]
    most = max(sorted(set(layers)), key=layers.count) if layers else grids[HEAD]
    table = grids.get(HEAD, most)
    usual = {name: table if name in TABLES else most for name in grids}
    exceptions = {name: grid for name, grid in grids.items() if grid != usual[name]}
    return Plan(layers=most, table=table, exceptions=MappingProxyType(exceptions))
