"""What quantization costs: our artifacts against llama.cpp's and onnxruntime-genai's best ones, at their bytes.

Usage: python benchmarks/quant_quality.py [--model FOLDER] [--tokens N] [--rows LIST] [--settings N] [--threads N]
Writes benchmarks/results/quant_quality.json, where rows that were not asked for stay as they were measured; the last
line printed is the same figures as one JSON object.

The model is a student off every grid (`offgrid_model.py`, trained once and cached) unless `--model` names one. Codes
are chosen on the second half of WikiText-2's validation text; every figure is measured on the articles of its test
text, which nothing was chosen by. KL divergence is to the model in float32, in nats per token, with a 95 % bootstrap
interval over windows. Bytes are those of the weights' files. Rows:

- int8: our ONNX with every matrix on 8 bits, beside the builder's int8.
- int4: our ONNX within the bytes of the builder's best 4-bit setting, which a sweep finds.
- gguf: our GGUF within the bytes of Q4_K_M, which gets the same importance matrix.
- release: GGUF and ONNX of one code set, against each other.
- speed: tokens decoded a second, ours over the builder's int4 and llama-quantize's Q4_0, in interleaved blocks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from offgrid_model import DATA, offgrid_model, wikitext_articles

from edgedistill.bench import block
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.llama_interface import llama_interface
from edgedistill.core.files import read_json, read_jsonl, write_json
from edgedistill.core.host import environment
from edgedistill.core.runfolder import SilentReporter
from edgedistill.core.stats import paired_ratio_interval, ratio_of_sums_interval
from edgedistill.export.gguf import export_gguf_codes, export_gguf_f16
from edgedistill.export.imatrix import chunks_of, collect_imatrix
from edgedistill.export.quantize import quantize_gguf
from edgedistill.export.quantize_model import quantize_model
from edgedistill.export.tally import Tally
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan
from edgedistill.runtimes.base import open_session
from edgedistill.runtimes.chat import encode, load_tokenizer

RESULT = Path(__file__).with_name("results") / "quant_quality.json"
ROWS = ("int8", "int4", "gguf", "release", "speed")
WINDOW, CONFIDENCE, CALIBRATED = 512, 0.95, 96
BLOCKS = 12
# of the builder, the likeliest best first, so that a shortened sweep still has them
SETTINGS = (
    "algo_config=k_quant_mixed block_size=32 accuracy_level=4",
    "algo_config=k_quant_mixed block_size=16 accuracy_level=4",
    "",
    "algo_config=k_quant_last block_size=32 accuracy_level=4",
    "algo_config=rtn_last block_size=32 accuracy_level=4",
    "algo_config=k_quant_mixed block_size=32 accuracy_level=4 is_symmetric=false",
    "algo_config=k_quant_mixed block_size=32",
    "algo_config=rtn_last block_size=16 accuracy_level=4",
    "algo_config=rtn block_size=32 accuracy_level=4",
    "algo_config=k_quant_mixed block_size=64 accuracy_level=4",
    "algo_config=k_quant_mixed block_size=128 accuracy_level=4",
    "algo_config=default block_size=16 accuracy_level=4",
    "algo_config=default block_size=64 accuracy_level=4",
    "algo_config=default block_size=128 accuracy_level=4",
)


@dataclass(frozen=True)
class Reference:
    """Windows of the test text, and the model's own float32 logits `[windows, tokens, vocab]`."""

    windows: list[list[int]]
    logits: np.ndarray


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    unknown = set(options.rows.split(",")) - set(ROWS)
    if unknown:
        sys.exit(f"expected rows of {', '.join(ROWS)}, found {', '.join(sorted(unknown))}")
    threads = options.threads or len(usable_cores())
    model = (options.model or offgrid_model(threads=threads)).resolve()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        bench = Bench(model, Path(scratch), threads=threads, tokens=options.tokens, settings=options.settings)
        scored = {"tokens_scored": sum(map(len, bench.reference.windows)), "threads": threads}
        found = {
            name: getattr(bench, name)() | scored | {"environment": environment()}
            for name in ROWS
            if name in options.rows.split(",")
        }
    made = model / "offgrid.json"
    source = json.loads(made.read_text()) if made.is_file() else {"folder": model.name}
    earlier = read_json(RESULT) if RESULT.is_file() else {}
    figures = {
        "schema_version": 2,
        "model": source,
        "text": "wikitext2_raw test (second-hand copy, see its README)",
        **{name: row for name, row in earlier.items() if name in ROWS and earlier.get("model") == source},
        **found,
    }
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, figures)
    print(json.dumps(figures))
    return 0


class BuildError(SystemExit):
    """What the builder says of a setting that it cannot build this model with."""


class Bench:
    """One run: what several rows need is made once and kept in `scratch`."""

    def __init__(self, model: Path, scratch: Path, *, threads: int, tokens: int, settings: int) -> None:
        self.model, self.scratch, self.threads = model, scratch, threads
        self.settings = SETTINGS[:settings]
        articles = wikitext_articles("train")
        self.calibration = scratch / "calibration.txt"
        self.calibration.write_text("\n".join(articles[len(articles) // 2 :]), encoding="utf-8")
        self.half = scratch / "f16.gguf"
        export_gguf_f16(model=model, out=self.half)
        self.reference = self._reference(tokens)
        self._best: tuple[str, dict[str, Any]] | None = None

    def int8(self) -> dict[str, Any]:
        ours = self._ours("int8", formats=("onnx",), max_bytes=10**12)
        theirs = self._measured(self._built("int8", ""))
        return {"ours": ours, "peer": theirs, "goal": "ours at most 155 MB at a KLD of at most 0.006"}

    def int4(self) -> dict[str, Any]:
        setting, theirs = self._best_int4()
        ours = self._ours("int4", formats=("onnx",), max_bytes=theirs["bytes"])
        return {
            "ours": ours,
            "peer": theirs | {"setting": setting or "default"},
            "sweep": self.swept,
            "kld_ratio": round(ours["kld"] / theirs["kld"], 4),
            "bytes_ratio": round(ours["bytes"] / theirs["bytes"], 4),
            "goal": "kld_ratio at most 0.5 at a bytes_ratio of at most 1",
        }

    def gguf(self) -> dict[str, Any]:
        chunks = chunks_of(encode(load_tokenizer(self.model), self.calibration.read_text(encoding="utf-8")))
        chunks = chunks[:: max(1, len(chunks) // CALIBRATED)][:CALIBRATED]
        means = collect_imatrix(self.half, chunks, threads=self.threads).means()
        peers = {}
        for name, importances in (("Q4_K_M + imatrix", means), ("Q4_K_M", None)):
            out = self.scratch / f"{name}.gguf"
            quantize_gguf(
                source=self.half, out=out, scheme="Q4_K_M", threads=self.threads, importances=importances
            )  # fmt: skip
            peers[name] = self._measured(out)
        best = min(peers, key=lambda name: peers[name]["kld"])
        ours = self._ours("gguf", formats=("gguf",), max_bytes=peers[best]["bytes"])
        return {
            "ours": ours,
            "peers": peers,
            "best_peer": best,
            "kld_ratio": round(ours["kld"] / peers[best]["kld"], 4),
            "bytes_ratio": round(ours["bytes"] / peers[best]["bytes"], 4),
            "goal": "kld_ratio at most 0.8 at a bytes_ratio of at most 1",
        }

    def release(self) -> dict[str, Any]:
        folder = self.scratch / "release"
        limit = int(0.85 * sum(p.stat().st_size for p in [self.half]) * 0.5)
        quantize_model(
            str(self.model), max_bytes=limit, calibration=self.calibration, out=folder, threads=self.threads,
            report=SilentReporter(),
        )  # fmt: skip
        between = self._compared(self._logits(folder / "gguf-mixed" / "model.gguf"), folder / "onnx-mixed")
        return {
            "gguf": self._measured(folder / "gguf-mixed" / "model.gguf"),
            "onnx": self._measured(folder / "onnx-mixed"),
            "between": between,
            "goal": "between: KLD at most 0.01, top-1 at least 0.95",
        }

    def speed(self) -> dict[str, Any]:
        """Decode speed of files of one type: Q4_0 layers with an 8-bit table, by us, llama-quantize and the builder."""
        ours, theirs = self.scratch / "ours-q4_0.gguf", self.scratch / "theirs-q4_0.gguf"
        codes = CodeSet(Plan("Q4_0", "Q8_0"))
        export_gguf_codes(model=self.model, out=ours, codes=codes)
        quantize_gguf(source=self.half, out=theirs, scheme="Q4_0", threads=self.threads)
        from edgedistill.export.onnx import export_onnx

        export_onnx(model=self.model, out=self.scratch / "ours-int4", threads=self.threads, codes=codes)
        built = self._built("int4", "algo_config=rtn_last block_size=32 accuracy_level=4")
        return {
            "gguf": self._ratio(ours, theirs, peer="llama-quantize Q4_0"),
            "onnx": self._ratio(self.scratch / "ours-int4", built, peer="builder int4, rtn_last block 32"),
            "goal": "each ratio at least 0.98",
        }

    def _ours(self, name: str, *, formats: tuple[str, ...], max_bytes: int) -> dict[str, Any]:
        """Our artifact of at most `max_bytes`, tokenizer and all; of a peer the weights' files alone are counted."""
        out = self.scratch / f"ours-{name}"
        found = quantize_model(
            str(self.model), max_bytes=max_bytes, calibration=self.calibration, out=out, formats=formats,
            threads=self.threads, report=SilentReporter(),
        )[f"{formats[0]}-mixed"]  # fmt: skip
        folder = out / f"{formats[0]}-mixed"
        path = folder / "model.gguf" if formats[0] == "gguf" else folder
        kept = ("grids", "bits_per_weight", "candidates")
        return self._measured(path) | {key: found[key] for key in kept}

    def _best_int4(self) -> tuple[str, dict[str, Any]]:
        if self._best is None:
            self.swept: dict[str, Any] = {}
            for setting in self.settings:
                try:
                    found = self._measured(self._built("int4", setting))
                except BuildError as e:  # k_quant wants rows that are multiples of the block, for one
                    found = {"cannot_be_built": str(e)}
                self.swept[setting or "default"] = found
                print(f"builder int4 {setting or 'default'}: {found}", file=sys.stderr, flush=True)
                if "kld" in found and (self._best is None or found["kld"] < self._best[1]["kld"]):
                    self._best = (setting, found)
            if self._best is None:
                sys.exit(f"expected a setting that the builder can build, found none of {len(self.settings)}")
        return self._best

    def _built(self, precision: str, setting: str) -> Path:
        out = self.scratch / f"built-{precision}-{setting.replace(' ', ',')}"
        if not out.is_dir():
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(self.model), "-o", str(out)]
            command += ["-p", precision, "-e", "cpu", "-c", str(self.scratch / "cache")]
            command += ["--extra_options", "hf_token=false", *setting.split()]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise BuildError(f"builder, {setting or 'default'}: {' '.join(done.stderr.strip().splitlines()[-1:])}")
        return out

    def _reference(self, tokens: int) -> Reference:
        tokenizer = load_tokenizer(self.model)
        texts = [encode(tokenizer, row["text"]) for row in read_jsonl(DATA / "wikitext2_raw" / "test.jsonl")]
        windows = [ids[:WINDOW] for ids in texts if len(ids) >= WINDOW][: max(2, -(-tokens // WINDOW))]
        logits: Any = None
        with closing(open_session("hf", self.model, threads=self.threads, context=WINDOW, dtype="float32")) as session:
            for number, ids in enumerate(windows):
                found = session.logits(ids)
                if logits is None:
                    shape = (len(windows), *found.shape)
                    place = self.scratch / "reference.npy"
                    logits = np.lib.format.open_memmap(place, mode="w+", dtype=np.float32, shape=shape)
                logits[number] = found
        return Reference(windows, logits)

    def _logits(self, path: Path) -> Iterator[np.ndarray]:
        engine = "llamacpp" if path.suffix == ".gguf" else "onnx"
        with closing(open_session(engine, path, threads=self.threads, context=WINDOW)) as session:
            for ids in self.reference.windows:
                yield session.logits(ids)

    def _measured(self, path: Path) -> dict[str, Any]:
        """Bytes of the weights' files, KL divergence with its interval, top-1 agreement."""
        files = [path] if path.is_file() else [p for p in path.iterdir() if p.name.startswith("model.onnx")]
        return {"bytes": sum(file.stat().st_size for file in files)} | self._compared(self.reference.logits, path)

    def _compared(self, wanted: Iterable[np.ndarray], path: Path) -> dict[str, float]:
        """KL divergence of the artifact at `path` from logits by window, and top-1 agreement."""
        tallies = []
        for theirs, ours in zip(wanted, self._logits(path), strict=True):
            tallies.append(Tally())
            tallies[-1].add(theirs, ours)
        counts = [float(tally.positions) for tally in tallies]
        found = ratio_of_sums_interval([tally.kld for tally in tallies], counts, confidence=CONFIDENCE, seed=0)
        return {
            "top1_ratio": round(sum(tally.equal for tally in tallies) / sum(counts), 4),
            "kld": float(f"{found.estimate:.4g}"),
            "kld_low": float(f"{found.low:.4g}"),
            "kld_high": float(f"{found.high:.4g}"),
        }

    def _ratio(self, ours: Path, theirs: Path, *, peer: str) -> dict[str, Any]:
        """Decode speed of ours over theirs from blocks in alternating order, each in a fresh process."""
        times: dict[Path, list[list[float]]] = {ours: [], theirs: []}
        for pair in range(BLOCKS):
            for path in (ours, theirs) if pair % 2 == 0 else (theirs, ours):
                (row,) = block.run_block(_job(path, threads=self.threads))["rows"]
                if "invalid" in row:
                    sys.exit(f"a block of {path.name} is invalid: {row['invalid']}")
                times[path].append(row["samples"]["tpot_ms"])
        ratio = paired_ratio_interval(times[theirs], times[ours], confidence=CONFIDENCE, seed=0)
        return {
            "peer": peer,
            "ratio": round(ratio.estimate, 4),
            "low": round(ratio.low, 4),
            "high": round(ratio.high, 4),
        }


def _job(path: Path, *, threads: int) -> dict[str, Any]:
    gguf = path.suffix == ".gguf"
    return {
        "engine": "llamacpp" if gguf else "onnxruntime-genai", "model": str(path),
        "options": {"interface": llama_interface()} if gguf else {}, "workloads": ["shape"], "threads": threads,
        "cores": usable_cores()[:threads], "context": 256, "batch": 128, "prompts": [], "end_ids": [],
        "max_new_tokens": 1, "warmup": 0,
        "shape": {"ids": [60 + i for i in range(64)], "decode": 64, "warmup": 1, "repetitions": 3},
    }  # fmt: skip


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder instead of the trained student")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens scored, in windows of 512")
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows to measure")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="how many of the builder's to sweep")
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    parser.add_argument("--scratch", type=Path, help="where temporary files go; some 5 GB")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
