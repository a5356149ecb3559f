"""The proof of finished artifacts: what it measures, what it refuses, and that it fails where it should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import faults
import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from edgedistill.cli.main import app
from edgedistill.core.artifact import Artifact, list_files
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json, write_json, write_jsonl
from edgedistill.core.runfolder import SilentReporter
from edgedistill.export import diagnose as diagnosing
from edgedistill.export import subject as subjects
from edgedistill.export import verify as verifying
from edgedistill.export.onnx_run import open_graph, padded_logits, run_graph
from edgedistill.export.parity import EIGHT_BIT, EXACT, FOUR_BIT
from edgedistill.export.subject import Subject, file_failures, open_subject, text_reference
from edgedistill.export.verify import bounds_between, read_texts, verify
from edgedistill.runtimes.base import open_session

Made = Callable[[str], Path]
WAYS = ["fresh", "KV cache, past 0", "KV cache, past 1", "KV cache, past N"]


def verified(artifact: Path, *, against: Path, probes: int = 300) -> dict[str, Any]:
    text = faults.save_text(against.parent / "text.txt")
    return verify(artifact, against=against, text=text, report=SilentReporter(), probes=probes)


def with_artifact(folder: Path, *, variant: str) -> Path:
    form, entry = ("gguf", "model.gguf") if variant.startswith("gguf") else ("onnx", "model.onnx")
    artifact = Artifact(variant=variant, format=form, entry=entry, parameters=1, bits_per_weight=1,
                        files=list_files(folder), source_digest="0")  # fmt: skip
    write_json(folder / "artifact.json", artifact.model_dump(mode="json"))
    return folder


@pytest.mark.parametrize(
    ("name", "batch", "bounds"),
    [
        ("model-f16", "batch of 4", EXACT),
        ("model-q4_0", "batch of 4", FOUR_BIT),
        ("model-fp32", "batch of 4, padded right", EXACT),
        ("model-int4", "batch of 4, padded right", FOUR_BIT),
    ],
)
def test_a_sound_artifact_holds_in_every_way_it_can_be_fed(name: str, batch: str, bounds: Any, made: Made) -> None:
    found = verified(made(name), against=made("model"), probes=3600 if name.endswith("4_0") else 300)
    assert found["holds"], found["checks"]
    assert found["bounds"] == vars(bounds)
    assert [check["name"] for check in found["checks"]] == ["files", "tokens", "chat template", "end ids", *WAYS, batch]
    assert found["tokenizer"]["strings"] >= (3000 if name.endswith("4_0") else 250)
    fresh = found["likeness"]["fresh"]
    assert fresh["texts"] >= 12 and fresh["positions"] > 400
    for way in found["likeness"].values():
        for figure in ("kld_nats", "top1_ratio"):
            assert way[figure]["low"] <= way[figure]["estimate"] <= way[figure]["high"]
    ratio = fresh["perplexity"]["estimate"] / fresh["model_perplexity"]["estimate"]
    assert fresh["perplexity_ratio"]["estimate"] == pytest.approx(ratio)
    if bounds is EXACT:
        assert ratio == pytest.approx(1, abs=1e-3) and fresh["kld_nats"]["high"] < 1e-4
        assert min(found["likeness"][way]["top1_ratio"]["estimate"] for way in [*WAYS, batch]) > 0.97
    assert any("cannot be padded on the left" in limit for limit in found["limits"]) == ("right" in batch)
    json.dumps(found, allow_nan=False)


def test_gguf_and_onnx_of_one_release_are_held_against_each_other(made: Made) -> None:
    found = verified(made("model-int4"), against=made("model-q4_0") / "model.gguf")
    assert found["holds"], found["checks"]
    assert found["bounds"] == vars(EIGHT_BIT)
    assert found["likeness"]["fresh"]["kld_nats"]["estimate"] < 0.01
    assert found["likeness"]["fresh"]["top1_ratio"]["estimate"] > 0.95


def test_a_bare_gguf_from_elsewhere_is_read_by_its_own_vocabulary(made: Made, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copyfile(made("model-f16") / "model.gguf", tmp_path / name / "foreign.gguf")
    found = verified(tmp_path / "a" / "foreign.gguf", against=tmp_path / "b" / "foreign.gguf")
    assert found["holds"], found["checks"]
    assert found["precision"] == "f16" and "no artifact.json" in found["checks"][0]["found"]
    assert found["likeness"]["fresh"]["kld_nats"]["estimate"] == 0


@pytest.mark.parametrize(
    ("name", "inject", "check"),
    [
        ("model-f16", faults.gguf_wrong_theta, "fresh"),
        ("model-f16", faults.gguf_unpermuted, "KV cache, past N"),
        ("model-q4_0", faults.gguf_wrong_end, "end ids"),
        ("model-q4_0", faults.gguf_shifted_vocabulary, "tokens"),
        ("model-fp32", faults.onnx_dropped_activation, "batch of 4, padded right"),
        ("model-int4", faults.onnx_no_template, "chat template"),
    ],
)
def test_a_broken_artifact_fails_where_it_is_broken(
    name: str, inject: Callable[[Path], None], check: str, made: Made, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made(name), tmp_path / "artifact"))
    inject(folder)
    found = verified(folder, against=made("model"))
    failed = [one["name"] for one in found["checks"] if not one["holds"]]
    assert not found["holds"] and check in failed
    json.dumps(found, allow_nan=False)


def test_the_command_prints_json_and_exits_1_where_a_check_fails(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("model-q4_0"), tmp_path / "artifact"))
    faults.gguf_no_template(folder)
    text = faults.save_text(tmp_path / "text.txt")
    arguments = ["verify", str(folder), "--against", str(made("model")), "--text", str(text), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [one["name"] for one in found["checks"] if not one["holds"]] == ["chat template"]


def test_the_command_shows_a_line_a_check_and_exits_0(made: Made) -> None:
    arguments = ["verify", str(made("model-q4_0") / "model.gguf"), "--against", str(made("model"))]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:10]] == [
        *("files", "tokens", "chat template", "end ids"), *WAYS, "batch of 4",
    ]  # fmt: skip
    assert lines[-1].endswith("within these bounds.")


def test_a_file_that_is_not_as_listed_is_refused_before_anything_is_loaded(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_artifact(Path(shutil.copytree(made("model-q4_0"), tmp_path / "a")), variant="gguf-q4_0")
    assert open_subject(folder).precision == "q4_0"
    faults.gguf_zeroed(folder)
    monkeypatch.setattr("edgedistill.runtimes.llama_lib.load", lambda *_, **__: pytest.fail("loaded"))
    for given in (folder, folder / "model.gguf"):
        with pytest.raises(InputError, match="does not have the SHA-256"):
            verified(given, against=made("model"))


def test_files_beside_and_links_and_paths_that_leave_are_found(made: Made, tmp_path: Path) -> None:
    folder = with_artifact(Path(shutil.copytree(made("model-int4"), tmp_path / "a")), variant="onnx-int4")
    assert file_failures(open_subject(folder)) == []
    (folder / "artifact.json").unlink()
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "_name_or_path": "/home/someone/model"})
    with_artifact(folder, variant="onnx-int4")
    (folder / "elsewhere").symlink_to(made("model") / "config.json")
    (folder / "notes.txt").write_text("left over")
    assert file_failures(open_subject(folder)) == [
        "config.json names the path '/home/someone/model' in _name_or_path",
        "elsewhere is a link out of the folder",
        "elsewhere is not listed in artifact.json",
        "notes.txt is not listed in artifact.json",
    ]


def test_matrices_stored_twice_and_bytes_of_no_tensor_are_found(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    matrix = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    for name in ("a.weight", "b.weight"):
        writer.add_tensor(name, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    size = path.stat().st_size
    with path.open("ab") as f:
        f.write(bytes(100))
    assert file_failures(open_subject(path)) == [
        "b.weight holds the same 16,384 bytes as a.weight",
        f"m.gguf: bytes {size:,} to {size + 100:,} belong to no tensor",
    ]


def test_what_is_no_model_is_refused_with_a_sentence(made: Made, tmp_path: Path) -> None:
    for given, found in ((tmp_path / "none", "nothing"), (tmp_path, "none of them")):
        with pytest.raises(InputError, match=f"expected a .gguf file.*found {found} at"):
            open_subject(given)
    write_json(tmp_path / "run" / "recipe.lock.json", {})
    for folder, command in (("30-export/gguf-q4_0", "export"), ("20-train/student", "train"), ("05-teacher", "synth")):
        with pytest.raises(InputError, match=rf"found nothing at .*; run `edgedistill {command} .*/run` first"):
            open_subject(tmp_path / "run" / folder)
    with pytest.raises(InputError, match="expected an artifact"):
        verified(made("model"), against=made("model"))
    folder = tmp_path / "config"
    folder.mkdir()
    write_json(folder / "genai_config.json", {"model": {}})
    with pytest.raises(InputError, match=r"expected model\.decoder\.filename"):
        open_subject(folder)
    write_json(folder / "genai_config.json", {"model": {"decoder": {"filename": "../model.onnx"}}})
    with pytest.raises(InputError, match=r"\.\./model\.onnx"):
        open_subject(folder)


def test_every_named_file_is_looked_for_before_one_is_hashed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("a model was opened")

    for module in (verifying, diagnosing):
        monkeypatch.setattr(module, "open_subject", never)
    artifact, gone = made("model-f16"), tmp_path / "gone"
    how = {"report": SilentReporter()}
    with pytest.raises(InputError, match=r"expected a text or JSONL file at .*gone, found nothing there; name a file"):
        verify(artifact, against=made("model"), text=gone, **how)
    with pytest.raises(InputError, match=r"found nothing at .*gone; give the model's own file or folder"):
        verify(artifact, against=gone, text=gone, **how)
    with pytest.raises(InputError, match=r"found nothing at .*gone; give the model's own file or folder"):
        diagnosing.diagnose(artifact, against=gone, text=gone, **how)


def test_bounds_are_the_coarser_ones_and_those_of_activations_at_one_precision() -> None:
    def of(precision: str | None) -> Subject:
        return Subject("x", "onnx", Path("x"), Path("x"), "model.onnx", precision)

    assert bounds_between(of("int4"), of(None)) is FOUR_BIT
    assert bounds_between(of("int4"), of("q4_0")) is EIGHT_BIT
    assert bounds_between(of("fp32"), of("q8_0")) is EIGHT_BIT
    assert bounds_between(of("fp32"), of("f16")) is EXACT
    assert [subjects._by_bits(bits) for bits in (32, 16, 8, 6, 5, 2)] == ["f16", "f16", "q8_0", "q8_0", "q4_0", "q4_0"]


def test_text_may_be_plain_or_lines_of_json(made: Made, tmp_path: Path) -> None:
    reference = text_reference(open_subject(made("model")))
    tokenizer = reference.tokenizer
    plain = read_texts(faults.save_text(tmp_path / "t.txt"), reference=reference)
    assert len(plain) >= 12 and {len(ids) for ids in plain[:-1]} == {len(plain[0])}
    rows = [{"text": "turn it on"}, {"messages": [{"role": "user", "content": "a"}], "answer": "b c"}]
    write_jsonl(tmp_path / "t.jsonl", rows)
    first, second = read_texts(tmp_path / "t.jsonl", reference=reference)
    assert tokenizer.decode(first) == "turn it on"
    assert tokenizer.decode(second) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb c"
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "a"}])
    for name, message in (("bad.jsonl", "bad.jsonl:1: expected 'text'"), ("none.txt", "found nothing there")):
        with pytest.raises(InputError, match=message):
            read_texts(tmp_path / name, reference=reference)
    (tmp_path / "short.txt").write_text("")
    with pytest.raises(InputError, match="at least two tokens"):
        read_texts(tmp_path / "short.txt", reference=reference)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="expected UTF-8"):
        read_texts(tmp_path / "latin.txt", reference=reference)


def test_batches_are_what_their_sequences_are_alone(made: Made) -> None:
    batch = [list(range(5, 5 + n)) for n in (9, 4, 17)]
    path = made("model-f16") / "model.gguf"
    with closing(open_session("llamacpp", path, threads=1, context=32)) as session:
        together = session.batch_logits(batch)
        for ids, rows in zip(batch, together, strict=True):
            assert np.abs(rows - session.logits(ids)).max() < 1e-2
        with pytest.raises(InputError, match="do not fit a batch"):
            session.batch_logits([[5] * 30] * 20)
    folder = made("model-fp32")
    found, refused = padded_logits(folder, batch, threads=1)
    assert refused == ("left",) and found.keys() == {"right"}
    session = open_graph(folder / "model.onnx", threads=1)
    for ids, rows in zip(batch, found["right"], strict=True):
        alone = run_graph(session, [ids], outputs=["logits"], head_size=16)[0][0]
        assert rows.shape == (len(ids), 1200) and np.abs(rows - alone).max() < 1e-4
