"""A model from elsewhere, measured as ours are: a GGUF file, an onnxruntime-genai folder or a Hugging Face folder.

Nobody says what it is asked, so it gets the fixed shapes, their tokens drawn by a seed, and a memory pass of one such
request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedistill.bench.derived import shipped_files
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.model_shape import shape_of
from edgedistill.bench.preflight import preflight
from edgedistill.bench.rounds import Protocol, Subject, measure_round, passes_of
from edgedistill.bench.shapes import seeded_ids
from edgedistill.core.artifact import content_digest, list_files, load_artifact
from edgedistill.core.errors import InputError
from edgedistill.core.files import sha256_file
from edgedistill.core.host import environment
from edgedistill.core.measurement import Measurement
from edgedistill.core.runfolder import Reporter
from edgedistill.core.target import load_target

TOKENS = 64  # of the memory pass's prompt, and of its answer
PROBES = {"genai_config.json": "onnxruntime-genai", "config.json": "torch"}


def measure_foreign(path: Path, *, targets: tuple[str, ...], blocks: int, report: Reporter) -> list[Measurement]:
    """Measure one model on each target, `blocks` fresh processes each.

    Raises:
        InputError: it is no model that an engine here opens, is damaged, or a target wants more cores than there are.
    """
    subject = foreign_subject(path)
    places = [(target, cores_of(target.limits.cores, where=target.id)) for target in map(load_target, targets)]
    needed = sum(file.stat().st_size for file in shipped_files(subject.path))
    state = preflight(cores=sorted({core for _, cores in places for core in cores}), needed_bytes=needed)
    for warning in state["warnings"]:
        report.note(f"measuring anyway: {warning}")
    protocol = Protocol(
        requests=1,
        max_new_tokens=TOKENS,
        decode_tokens=TOKENS,
        environment=environment() | {"preflight": state},
        memory_rounds=frozenset(range(blocks)),
    )
    rows: list[Measurement] = []
    total = blocks * len(places) * len(passes_of(subject, pair=0, protocol=protocol))
    done = iter(range(total))
    for pair in range(blocks):
        for target, cores in places:
            rows += measure_round(
                [subject],
                target=target,
                pair=pair,
                cores=cores,
                protocol=protocol,
                on_block=lambda model, target=target: report.progress(next(done), total, "blocks", target=target.id),
            )
    return rows


def foreign_subject(path: Path) -> Subject:
    """What `path` is, and how it is measured.

    Raises:
        InputError: it is none of the three, or is damaged.
    """
    engine, model = _engine(path)
    shape = shape_of(engine, model)
    ids = seeded_ids(vocab=shape.vocab, count=TOKENS)
    return Subject(
        name=path.stem if path.is_file() else path.name,
        engine=engine,
        path=model.resolve(),
        digest=sha256_file(model) if model.is_file() else content_digest(list_files(model)),
        slow=engine == "torch",
        end_ids=(),
        rounds=((ids,),),
        shape_ids=ids,
        shape=shape,
        foreign=True,
    )


def cores_of(wanted: int, *, where: str) -> list[int]:
    """The last `wanted` usable cores; all of them for 0.

    Raises:
        InputError: there are not so many.
    """
    usable = usable_cores()
    if wanted > len(usable):
        raise InputError(
            f"target {where} wants {wanted} cores, this host lets {len(usable)} be used; choose another target"
        )
    return usable[-wanted:] if wanted else usable


def _engine(path: Path) -> tuple[str, Path]:
    if path.is_file() and path.suffix == ".gguf":
        return "llamacpp", path
    found: Any = None
    if (path / "artifact.json").is_file():
        artifact = load_artifact(path)
        found = ("llamacpp", path / artifact.entry) if artifact.format == "gguf" else ("onnxruntime-genai", path)
    else:
        found = next(((engine, path) for name, engine in PROBES.items() if (path / name).is_file()), None)
    if found is None:
        raise InputError(
            f"expected a .gguf file, or a folder with {' or '.join(PROBES)}, found neither at {path}; "
            "name a model, a run's folder or a recipe"
        )
    return found
