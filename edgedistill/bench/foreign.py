"""A model from elsewhere, measured as ours are: a GGUF file, an ONNX decoder or a Hugging Face folder.

Nobody says what it is asked, so it gets the fixed shapes, their tokens drawn by a seed, and a memory pass of one such
request.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from edgedistill.bench.block import run_block
from edgedistill.bench.derived import shipped_files
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.model_shape import shape_of
from edgedistill.bench.onnx_folder import find_graphs, the_graph
from edgedistill.bench.preflight import preflight
from edgedistill.bench.rounds import THIS_HOST, Protocol, Subject, measure_round, passes_of
from edgedistill.bench.runner import Runner, open_runner
from edgedistill.bench.shapes import seeded_ids
from edgedistill.core.artifact import content_digest, list_files, load_artifact
from edgedistill.core.errors import InputError, MissingError
from edgedistill.core.files import digest_of, sha256_file
from edgedistill.core.host import environment
from edgedistill.core.measurement import Measurement
from edgedistill.core.runfolder import Reporter
from edgedistill.core.target import Target, load_target
from edgedistill.runtimes.gguf_model import check_gguf
from edgedistill.runtimes.sources import check_folder

TOKENS = 64  # of the memory pass's prompt, and of its answer
GENAI, PLAIN = "onnxruntime-genai", "onnxruntime"


def measure_foreign(path: Path, *, targets: tuple[str, ...], blocks: int, report: Reporter) -> list[Measurement]:
    """Measure one model on each target, `blocks` fresh processes each.

    Raises:
        InputError: it is no model that an engine here opens, is damaged, or a target wants more cores than there are
            or has no runner that reaches it.
        MissingError: a target's device, or what reaches it, is not there.
    """
    wanted = [load_target(name) for name in targets]
    subject = foreign_subject(path)
    if subject.choice:
        report.note(f"{subject.name} runs in {subject.engine}: {subject.choice['because']}")
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
    engine, model, because = _engine(path)
    _check(engine, model)
    shape = shape_of(engine, model)
    ids = seeded_ids(vocab=shape.vocab, count=TOKENS)
    return Subject(
        name=path.stem if path.is_file() else path.name,
        engine=engine,
        path=model.resolve(),
        digest=_digest(model),
        slow=engine == "torch",
        end_ids=(),
        rounds=((ids,),),
        shape_ids=ids,
        shape=shape,
        foreign=True,
        choice={"engine": engine, "because": because} if because else {},
    )


def _check(engine: str, model: Path) -> None:
    """Hold the files against their own structure before a worker loads them; raises InputError."""
    if engine == "llamacpp":
        check_gguf(model)
        _check_vocabulary(model)
    elif engine == "torch":
        check_folder(model)
    else:
        from edgedistill.runtimes.onnx_file import check_genai_folder, check_onnx_file

        if engine == GENAI:
            check_genai_folder(model)
        else:
            check_onnx_file(Path(the_graph(str(model))))


def _check_vocabulary(model: Path) -> None:
    """Have llama.cpp read the vocabulary: a pre-tokenizer it does not know is the file's fault, not a block's.

    Where it is not installed, a board may have it.
    """
    from edgedistill.runtimes.llama_lib import library, load

    try:
        lib = library()
    except MissingError:
        return
    lib.llama_model_free(load(model, vocab_only=True))


def _engine(path: Path) -> tuple[str, Path, str]:
    """Engine, the path it opens, and why it is that one where another could be expected."""
    if path.is_file() and path.suffix == ".gguf":
        return "llamacpp", path, ""
    if path.is_file() and path.suffix == ".onnx":
        return PLAIN, path, "a graph was named, not a folder"
    if (path / "artifact.json").is_file():
        artifact = load_artifact(path)
        return ("llamacpp", path / artifact.entry, "") if artifact.format == "gguf" else (GENAI, path, "")
    refused = "there is no genai_config.json"
    if (path / "genai_config.json").is_file():
        _check(GENAI, path)
        refused = _refusal(path)
        if not refused:
            return GENAI, path, ""
    if find_graphs(str(path)) and not any(path.glob("*.safetensors")):
        the_graph(str(path))
        return PLAIN, path, refused
    if (path / "config.json").is_file():
        return "torch", path, ""
    raise InputError(
        f"expected a .gguf or .onnx file, or a folder with genai_config.json, config.json or one .onnx file, found "
        f"none at {path}; name a model, a run's folder or a recipe"
    )


def _refusal(folder: Path) -> str:
    """Why onnxruntime-genai does not run the folder; empty if it does: a worker loads it and makes two tokens."""
    shape = {"ids": [0], "decode": 2, "warmup": 0, "repetitions": 1}
    job = {
        "engine": GENAI, "model": str(folder.resolve()), "workloads": ["shape"], "threads": 1,
        "cores": usable_cores()[-1:], "context": 32, "batch": 32, "shape": shape,
    }  # fmt: skip
    reason = run_block(job)["rows"][0].get("invalid")
    return f"onnxruntime-genai refuses it: {reason}" if reason else ""


def _digest(model: Path) -> str:
    """Digest of a file, of a graph and its weights beside it, or of a folder."""
    if model.is_dir():
        return content_digest(list_files(model))
    if model.suffix != ".onnx":
        return sha256_file(model)
    weights = sorted(path for path in model.parent.glob(f"{model.name}[._]data*") if path.is_file())
    return digest_of([[path.name, sha256_file(path)] for path in (model, *weights)])
