"""A model from elsewhere, measured as ours are: a GGUF file, an onnxruntime-genai folder or a Hugging Face folder.

Nobody says what it is asked, so it gets the fixed shapes, their tokens drawn by a seed, and a memory pass of one such
request.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgedistill.bench.derived import shipped_files
from edgedistill.bench.model_shape import shape_of
from edgedistill.bench.preflight import preflight
from edgedistill.bench.rounds import THIS_HOST, Protocol, Subject, measure_round, passes_of
from edgedistill.bench.runner import Runner, open_runner
from edgedistill.bench.shapes import seeded_ids
from edgedistill.core.artifact import content_digest, list_files, load_artifact
from edgedistill.core.errors import InputError
from edgedistill.core.files import sha256_file
from edgedistill.core.host import environment
from edgedistill.core.measurement import Measurement
from edgedistill.core.runfolder import Reporter
from edgedistill.core.target import Target, load_target

TOKENS = 64  # of the memory pass's prompt, and of its answer
PROBES = {"genai_config.json": "onnxruntime-genai", "config.json": "torch"}


def measure_foreign(path: Path, *, targets: tuple[str, ...], blocks: int, report: Reporter) -> list[Measurement]:
    """Measure one model on each target, `blocks` fresh processes each.

    Raises:
        InputError: it is no model that an engine here opens, is damaged, or a target wants more cores than there are
            or has no runner that reaches it.
        MissingError: a target's device, or what reaches it, is not there.
    """
    subject = foreign_subject(path)
    wanted = [load_target(name) for name in targets]
    with ExitStack() as stack:
        places = [(target, stack.enter_context(open_runner(target))) for target in wanted]
        return _measure(subject, places, blocks=blocks, report=report)


def _measure(
    subject: Subject, places: Sequence[tuple[Target, Runner]], *, blocks: int, report: Reporter
) -> list[Measurement]:
    cores = {target.id: runner.cores(threads=0) for target, runner in places}
    here = {core for target, _ in places if target.runner in THIS_HOST for core in cores[target.id]}
    needed = sum(file.stat().st_size for file in shipped_files(subject.path))
    state = preflight(cores=sorted(here), needed_bytes=needed)
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
        for target, runner in places:
            rows += measure_round(
                [subject],
                target=target,
                pair=pair,
                cores=cores[target.id],
                protocol=protocol,
                run=runner.run,
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
