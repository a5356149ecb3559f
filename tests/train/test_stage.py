"""The stages `teacher` and `train` on a tiny teacher: what they leave, what they refuse, and how they go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_llama
from tiny_training import fresh_accelerator, load

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl, write_text
from edgedistill.core.recipe import Recipe
from edgedistill.core.records import Message, Prompt, TeacherRecord
from edgedistill.core.runfolder import StageContext
from edgedistill.runtimes.chat import encode, end_ids, load_tokenizer, render, template_hash, tokenizer_hash
from edgedistill.runtimes.logit_cache import CacheIdentity, make_row, row_key, write_cache
from edgedistill.train import arms
from edgedistill.train.folders import save_model
from edgedistill.train.stage import run, run_teacher
from edgedistill.train.student import own_records

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("light", "fan", "tv", "oven", "lock", "alarm")
PROMPTS = [
    Prompt(id=f"p{i}", messages=(Message(role="user", content=f"turn {on} the {word}"),), answer=f'{{"{word}":"{on}"}}')
    for i, (word, on) in enumerate((word, on) for word in WORDS for on in ("on", "off"))
]


class Notes:
    """Keeps what a stage says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[str, float]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        self.steps.append((str(figures.get("arm", unit)), done))


def context(folder: Path, stage: str, model: Path, report: Any = None, **changes: Any) -> StageContext:
    recipe = {
        "name": "tiny",
        "threads": 1,
        "task": {"answer": "json", "max_new_tokens": 24},
        "data": {"gold": "gold.jsonl", "valid": "valid.jsonl"},
        "teacher": {"model": str(model)},
        "student": {"cut": {"layers": (0, 2), "ffn": 96, "vocab": 352}},
        "train": {"lr": 3e-3, "epochs": 2, "batch_size": 4, "valid_share": 0.2, "dtype": "fp32", "control": {}},
        **changes,
    }
    found = StageContext(Recipe.model_validate(recipe), folder, stage, report or Notes(), {})
    found.folder.mkdir(parents=True, exist_ok=True)
    data = found.folder_of("data")
    data.mkdir(exist_ok=True)
    for split in ("gold", "valid"):
        write_jsonl(data / f"{split}.jsonl", [p.model_dump(mode="json") for p in PROMPTS])
    return found


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    folder = save_tiny_llama(tmp_path_factory.mktemp("deep") / "llama", layers=3, seed=5)
    model = load(folder)
    with torch.no_grad():  # a fresh model's row of the padding token, here also the end, is zero: no LoRA can say it
        model.get_input_embeddings().weight[2].normal_(std=0.2)
    save_model(model, folder)
    return folder


def label(ctx: StageContext) -> None:
    """What synth would leave: gold as the teacher's answers, with the teacher's own distributions."""
    folder, synth = ctx.folder_of("teacher"), ctx.folder_of("synth")
    synth.mkdir(exist_ok=True)
    tokenizer, model = load_tokenizer(folder), load(folder)
    identity = CacheIdentity(tokenizer_hash(folder), template_hash(tokenizer.chat_template), "teacher-1")
    records, rows = [], {}
    for p in PROMPTS:
        ids = encode(tokenizer, render(tokenizer, p.messages, template=tokenizer.chat_template))
        answer = [*encode(tokenizer, p.answer), end_ids(folder)[0]]
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1]
        top = torch.log_softmax(logits.double(), -1).topk(4)
        key = row_key(ids, answer, identity=identity)
        rows[key] = make_row(top.indices.tolist(), top.values.tolist())
        records.append(
            TeacherRecord(
                id=f"r-{p.id}", prompt_id=p.id, teacher="teacher-1", messages=p.messages, answer=p.answer,
                prompt_ids=tuple(ids), answer_ids=tuple(answer), logits_key=key,
            )
        )  # fmt: skip
    write_cache(synth / "logits-00000.safetensors", rows, identity=identity)
    write_jsonl(synth / "records-00000.jsonl", [r.model_dump(mode="json") for r in records])


def labelled(folder: Path, deep: Path) -> Path:
    """The records of a run in `folder` whose teacher has answered."""
    run_teacher(context(folder, "teacher", deep))
    ctx = context(folder, "synth", deep)
    label(ctx)
    return ctx.folder / "records-00000.jsonl"


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): sha256_file(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "metrics.jsonl"
    }


def trained(folder: Path, deep: Path, **changes: Any) -> StageContext:
    """A run folder whose teacher is taken as it is, labelled, and whose train stage ran."""
    labelled(folder, deep)
    ctx = context(folder, "train", deep, **changes)
    run(ctx)
    return ctx


def test_teacher_as_it_is_gets_the_recipes_template_alone(tmp_path, deep):
    task = {"answer": "json", "chat_template": TEMPLATE.replace("<|im_start|>assistant", "<|im_start|>robot")}
    ctx = context(tmp_path, "teacher", deep, task=task)
    run_teacher(ctx)
    assert "robot" in load_tokenizer(ctx.folder).chat_template
    assert sha256_file(ctx.folder / "tokenizer.json") == sha256_file(deep / "tokenizer.json")
    assert sha256_file(ctx.folder / "model.safetensors") == sha256_file(deep / "model.safetensors")
    assert (ctx.folder / "model.safetensors").stat().st_ino == (deep / "model.safetensors").stat().st_ino
    assert ctx.figures["source"]["revision"].startswith("folder-sha256:")


ADAPT = {"rank": 8, "alpha": 32, "lr": 1e-2, "epochs": 60, "batch_size": 4}


def test_adapted_teacher_learns_the_task_and_is_merged(tmp_path, deep):
    ctx = context(tmp_path, "teacher", deep, teacher={"model": str(deep), "adapt": ADAPT})
    run_teacher(ctx)
    assert ctx.figures["valid_exact_match_ratio"] >= 0.95 and ctx.figures["valid_items"] == len(PROMPTS)
    assert {row["arm"] for row in read_jsonl(ctx.folder / "metrics.jsonl")} == {"teacher"}
    before, after = load(deep), load(ctx.folder)
    assert after.dtype == torch.float32 and type(after) is type(before)
    assert not torch.equal(before.model.layers[0].mlp.up_proj.weight, after.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert not (ctx.folder / "checkpoints").exists() and not list(ctx.folder.glob(".*.tmp"))
    stamp = (ctx.folder / "model.safetensors").stat().st_mtime_ns
    again = context(tmp_path, "teacher", deep, teacher={"model": str(deep), "adapt": ADAPT})
    run_teacher(again)  # killed before its manifest: nothing is trained again
    assert (ctx.folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert again.figures == ctx.figures


def test_teacher_that_stays_bad_at_the_task_stops_the_run(tmp_path, deep):
    adapt = {**ADAPT, "epochs": 1, "lr": 1e-6}
    ctx = context(tmp_path, "teacher", deep, teacher={"model": str(deep), "adapt": adapt})
    said = (
        r"expected .* 95\.0% of data\.valid exactly, found 0\.0% \(0 of 12; 'turn on the light' → .*teacher\.adapt\.lr"
    )
    with pytest.raises(StageError, match=said):
        run_teacher(ctx)


def test_adapting_without_gold_or_valid_is_refused(tmp_path, deep):
    for split, said in (("gold", "expected gold answers"), ("valid", "expected data.valid")):
        teacher = {"model": str(deep), "adapt": {**ADAPT, "epochs": 1}}
        ctx = context(tmp_path / split, "teacher", deep, teacher=teacher)
        write_jsonl(ctx.folder_of("data") / f"{split}.jsonl", [])
        with pytest.raises(InputError, match=said):
            run_teacher(ctx)


def test_student_is_cut_trained_and_compared(tmp_path, deep):
    ctx = trained(tmp_path, deep)
    for arm in ("untrained", "student", "control"):
        config = read_json(ctx.folder / arm / "config.json")
        assert (config["num_hidden_layers"], config["intermediate_size"], config["vocab_size"]) == (2, 96, 352)
        assert load_tokenizer(ctx.folder / arm).chat_template == load_tokenizer(deep).chat_template
        tokenizer = load_tokenizer(ctx.folder / arm)
        assert tokenizer.convert_ids_to_tokens(end_ids(ctx.folder / arm)) == ["<|im_end|>"] and len(tokenizer) == 352
    weights = {arm: hashes(ctx.folder / arm)["model.safetensors"] for arm in ("untrained", "student", "control")}
    assert len(set(weights.values())) == 3
    widths = {"hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}
    assert ctx.figures["cut"] == {"layers": [0, 2], "candidates": [], "widths": widths}
    assert ctx.figures["student"]["steps"] == ctx.figures["control"]["steps"] == 6
    assert ctx.figures["student"]["kd_weight"] == 0.5 and ctx.figures["control"]["kd_weight"] == 0
    assert ctx.figures["trained_on"] == 10 and ctx.figures["validated_on"] == 2
    assert ctx.figures["dtype"] in ("float32", "bfloat16")
    assert any(note.startswith("12 of 12 records of whose teacher's probability") for note in ctx.report.notes)
    rows = read_jsonl(ctx.folder / "metrics.jsonl")
    assert all(row["kl"] > 0 for row in rows if row["arm"] == "student" and "loss" in row)
    assert all(row["kl"] == 0 for row in rows if row["arm"] == "control" and "loss" in row)
    assert not (ctx.folder / "checkpoints").exists()


class Kill(Notes):
    def __init__(self, arm: str, step: int) -> None:
        super().__init__()
        self.at = (arm, step)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        super().progress(done, total, unit, **figures)
        if self.steps[-1] == self.at:
            raise MemoryError


def test_killed_stage_ends_byte_for_byte_alike_and_repeats_no_finished_arm(tmp_path, deep):
    whole = trained(tmp_path / "a", deep)
    often = {**whole.recipe.train.model_dump(), "checkpoint_every_s": 0}
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "20-train")
    for arm, step in (("student", 1), ("student", 4), ("control", 2), ("control", 5)):
        with pytest.raises(MemoryError):
            run(context(tmp_path / "b", "train", deep, Kill(arm, step), train=often))
    report = Notes()
    ctx = context(tmp_path / "b", "train", deep, report, train=often)
    run(ctx)
    assert report.steps == [("control", 5), ("control", 6)]  # step 5 was done, but killed before it was saved
    assert hashes(ctx.folder) == hashes(whole.folder)
    drop = {"tok_s", "eta_s"}
    logs = [read_jsonl(c.folder / "metrics.jsonl") for c in (whole, ctx)]
    rows = [[{k: v for k, v in row.items() if k not in drop} for row in log] for log in logs]
    assert rows[0] == rows[1]


def test_student_of_the_same_tokenizer_is_trained_with_lora(tmp_path, deep, tiny_llama):
    student = tmp_path / "student"
    shutil.copytree(tiny_llama, student)
    for name in ("config.json", "generation_config.json"):  # a base model, which ends as no chat does
        write_json(student / name, read_json(student / name) | {"eos_token_id": 0})
    train = {"lr": 1e-2, "epochs": 1, "batch_size": 4, "lora": {"rank": 4, "alpha": 8}, "dtype": "bf16"}
    ctx = trained(tmp_path, deep, student={"model": str(student)}, train=train)
    assert end_ids(ctx.folder / "student") == (2,) and load(ctx.folder / "student").config.eos_token_id == 2
    before, after = load(ctx.folder / "untrained"), load(ctx.folder / "student")
    assert after.dtype == torch.float32 and after.config.num_hidden_layers == 2
    assert not torch.equal(before.model.layers[1].mlp.up_proj.weight, after.model.layers[1].mlp.up_proj.weight)
    assert torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)
    assert not (ctx.folder / "control").exists()


def test_an_answer_in_unusual_tokens_keeps_its_usual_ones(tmp_path, deep):
    path, tokenizer = labelled(tmp_path, deep), load_tokenizer(deep)
    rows = read_jsonl(path)
    for row in rows:
        letters = [tokenizer.convert_tokens_to_ids(letter) for letter in row["answer"]]
        row |= {"answer_ids": [*letters, row["answer_ids"][-1]], "logits_key": None}
    write_jsonl(path, rows)
    cut = {"layers": (0, 2), "vocab": 320}
    ctx = context(tmp_path, "train", deep, student={"cut": cut})
    run(ctx)
    student = load_tokenizer(ctx.folder / "student")
    for row in rows:
        usual = tokenizer.tokenize(row["answer"])
        assert len(usual) < len(row["answer"]) and student.tokenize(row["answer"]) == usual


def test_frozen_embeddings_stay_as_they_were(tmp_path, deep):
    train = {"lr": 1e-2, "epochs": 1, "batch_size": 4, "freeze_embeddings": True, "dtype": "fp32"}
    ctx = trained(tmp_path, deep, train=train)
    before, after = load(ctx.folder / "untrained").state_dict(), load(ctx.folder / "student").state_dict()
    assert {n for n in before if torch.equal(before[n], after[n])} == {"model.embed_tokens.weight", "lm_head.weight"}


def test_layers_before_the_first_one_stay_as_they_were(tmp_path, deep):
    train = {"lr": 1e-2, "epochs": 1, "batch_size": 4, "freeze_embeddings": True, "first_layer": 1, "dtype": "fp32"}
    ctx = trained(tmp_path, deep, train=train)
    before, after = load(ctx.folder / "untrained").state_dict(), load(ctx.folder / "student").state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n for n in before if n.startswith("model.layers.1.") or n == "model.norm.weight"}


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_a_first_layer_that_is_not_there_is_refused(tmp_path, deep, lora):
    with pytest.raises(InputError, match=r"a layer of the .*, found 2 and 2 .*; lower it"):
        trained(tmp_path, deep, train={"first_layer": 2, "dtype": "fp32", "lora": lora})


def test_the_student_may_learn_the_right_answers_of_gold_too(tmp_path, deep):
    alone = trained(tmp_path / "a", deep)
    both = trained(tmp_path / "b", deep, train={"epochs": 1, "batch_size": 4, "gold": True, "dtype": "fp32"})
    assert (alone.figures["records"], both.figures["records"]) == (len(PROMPTS), 2 * len(PROMPTS))
    learnt = both.figures["trained_on"] + both.figures["validated_on"]
    assert learnt == both.figures["records"]


def test_a_token_that_gold_alone_says_is_in_the_student_s_vocabulary(tmp_path, deep):
    train = {"epochs": 1, "batch_size": 4, "dtype": "fp32"}
    alone = load_tokenizer(trained(tmp_path / "a", deep, train=train).folder / "student")
    teacher = load_tokenizer(deep)
    answers = {word: f'{{"light":"{word}"}}' for word in sorted(teacher.get_vocab().keys() - alone.get_vocab().keys())}
    word = next(word for word, answer in answers.items() if word.isascii() and word in teacher.tokenize(answer))

    run_teacher(context(tmp_path / "b", "teacher", deep))
    label(context(tmp_path / "b", "synth", deep))
    ctx = context(tmp_path / "b", "train", deep, train={**train, "gold": True})
    odd = PROMPTS[0].model_copy(update={"id": "odd", "answer": answers[word]})
    write_jsonl(ctx.folder_of("data") / "gold.jsonl", [odd.model_dump(mode="json")])
    run(ctx)
    assert word in load_tokenizer(ctx.folder / "student").get_vocab()


def test_student_with_too_few_rows_is_refused(tmp_path, deep):
    small = trained(tmp_path / "a", deep).folder / "untrained"
    shutil.copyfile(deep / "tokenizer.json", small / "tokenizer.json")
    with pytest.raises(InputError, match=r"the teacher's 384 tokens, found 352 embedding rows .*train.kd_weight = 0"):
        trained(tmp_path / "b", deep, student={"model": str(small)})


def test_student_of_another_tokenizer_is_refused(tmp_path, deep, tiny_llama):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    parsed = read_json(other / "tokenizer.json")
    parsed["model"]["merges"] = parsed["model"]["merges"][:40]
    write_json(other / "tokenizer.json", parsed)
    with pytest.raises(InputError, match=r"the student tokenizes record r-p\d+ into .*, or set train.kd_weight = 0"):
        trained(tmp_path / "run", deep, student={"model": str(other)})


def test_a_student_of_any_tokenizer_learns_the_teacher_s_text(tmp_path, deep):
    other = save_tiny_llama(tmp_path / "other", layers=1, seed=8)
    parsed = read_json(other / "tokenizer.json")
    kept = parsed["model"]["merges"][:40]  # other tokens under the teacher's ids
    parsed["model"]["merges"] = kept
    write_json(other / "tokenizer.json", parsed)
    write_text(other / "chat_template.jinja", TEMPLATE.replace("assistant", "robot"))
    train = {"lr": 3e-3, "epochs": 2, "batch_size": 4, "valid_share": 0.2, "dtype": "fp32", "kd_weight": 0.0}
    ctx = trained(tmp_path / "run", deep, student={"model": str(other)}, train=train)
    assert ctx.figures["trained_on"] == 10 and ctx.figures["student"]["valid_loss"] > 0
    for arm in ("untrained", "student"):
        assert sha256_file(ctx.folder / arm / "tokenizer.json") == sha256_file(other / "tokenizer.json")
        assert "robot" in load_tokenizer(ctx.folder / arm).chat_template
    records = [TeacherRecord.model_validate(r) for r in read_jsonl(ctx.folder_of("synth") / "records-00000.jsonl")]
    (own,) = own_records(records[:1], student=ctx.folder / "student", template=TEMPLATE)
    tokenizer = load_tokenizer(other)
    assert own.prompt_ids != records[0].prompt_ids and own.logits_key is None
    assert tokenizer.decode(own.prompt_ids) == render(tokenizer, own.messages, template=TEMPLATE)
    assert tokenizer.decode(own.answer_ids) == f"{own.answer}<|im_end|>"


def test_a_tokenizer_with_more_tokens_than_its_model_has_rows_is_refused(tmp_path, deep):
    small = trained(tmp_path / "a", deep).folder / "untrained"
    shutil.copyfile(deep / "tokenizer.json", small / "tokenizer.json")
    train = {"lr": 3e-3, "epochs": 1, "batch_size": 4, "dtype": "fp32", "kd_weight": 0.0}
    with pytest.raises(InputError, match=r"expected a row for each token .* found 352 rows and token 3\d\d in record"):
        trained(tmp_path / "b", deep, student={"model": str(small)}, train=train)


def test_a_student_within_a_target_is_chosen_and_told_of(tmp_path, deep):
    cut = {"target_parameters": 60_000, "layer_score": "influence", "vocab": 352}
    ctx = trained(tmp_path, deep, student={"cut": cut})
    model, candidates = load(ctx.folder / "untrained"), ctx.figures["cut"]["candidates"]
    assert sum(p.numel() for p in model.parameters()) == candidates[0]["size"] <= 60_000
    assert [c["loss"] for c in candidates] == sorted(c["loss"] for c in candidates) and len(candidates) > 3
    assert len(ctx.figures["cut"]["layers"]) == candidates[0]["layers"] == model.config.num_hidden_layers
    assert any("shapes within 60,000 parameters chose" in note for note in ctx.report.notes)
    assert any("no multiple of 256" in note for note in ctx.report.notes)


def test_distributions_of_another_template_are_refused(tmp_path, deep):
    run_teacher(context(tmp_path, "teacher", deep))
    label(context(tmp_path, "synth", deep))
    task = {"answer": "json", "chat_template": TEMPLATE + " "}
    with pytest.raises(InputError, match="is stale: expected distributions of template"):
        run(context(tmp_path, "train", deep, task=task))


def test_no_records_is_said(tmp_path, deep):
    run_teacher(context(tmp_path, "teacher", deep))
    with pytest.raises(StageError, match=r"expected the teacher's records in .*10-synth, found none; run synth first"):
        run(context(tmp_path, "train", deep))


def test_records_without_distributions_are_learnt_from_their_text(tmp_path, deep):
    path = labelled(tmp_path, deep)
    write_jsonl(path, [{**json.loads(line), "logits_key": None} for line in path.read_text().splitlines()])
    for file in path.parent.glob("logits-*"):
        file.unlink()
    ctx = context(tmp_path, "train", deep)
    run(ctx)
    weights = [load(ctx.folder / arm).model.embed_tokens.weight.detach().numpy() for arm in ("student", "control")]
    assert np.array_equal(*weights)


def test_a_record_learns_of_its_own_teacher_or_from_its_text(tmp_path, deep):
    path = labelled(tmp_path, deep)
    rows = read_jsonl(path)
    for row in rows[:3]:
        row |= {"teacher": "teacher-2", "logits_key": None}
    write_jsonl(path, rows)
    ctx = context(tmp_path, "train", deep)
    run(ctx)
    assert ctx.figures["with_distributions"] == 9
    said = "9 of 12 records have their teacher's distributions (0 of 3 of teacher-2, 9 of 9 of teacher-1), the others "
    assert any(note.startswith(said) for note in ctx.report.notes)
    steps = [row for row in read_jsonl(ctx.folder / "metrics.jsonl") if row["arm"] == "student" and "loss" in row]
    assert all(row["kl"] > 0 for row in steps)
    rows[5] |= {"teacher": "teacher-2"}
    write_jsonl(path, rows)
    with pytest.raises(InputError, match="of teacher-2 for record r-p5, found those of teacher-1 for its text"):
        run(context(tmp_path, "train", deep))


def test_an_online_teacher_and_a_further_one_leave_a_student_and_its_control(tmp_path, deep, monkeypatch):
    pairs = []
    paired = arms.pair_layers
    monkeypatch.setattr(arms, "pair_layers", lambda *args, **named: pairs.append(paired(*args, **named)) or pairs[-1])
    other = save_tiny_llama(tmp_path / "other", layers=1, seed=9)
    train = {
        "lr": 3e-3, "epochs": 2, "batch_size": 4, "valid_share": 0.2, "dtype": "fp32", "control": {},
        "teacher": "online", "on_policy": 0.5, "match": {}, "further_teachers": [{"model": str(other), "weight": 0.2}],
    }  # fmt: skip
    ctx = trained(tmp_path / "run", deep, train=train)
    rows = read_jsonl(ctx.folder / "metrics.jsonl")
    steps = {arm: [row for row in rows if row["arm"] == arm and "loss" in row] for arm in ("student", "control")}
    assert all(row["kl"] > 0 and row["match"] > 0 for row in steps["student"])
    assert {row["sampled"] for row in steps["student"]} == {0, 1}
    assert all(row["kl"] == 0 and "match" not in row and "sampled" not in row for row in steps["control"])
    assert not any("matching" in name for name in load(ctx.folder / "student").state_dict())
    kept, depth = ctx.figures["cut"]["layers"], read_json(deep / "config.json")["num_hidden_layers"]
    assert 1 < len(kept) < depth
    assert pairs == [tuple((i, end - 1) for i, end in enumerate([*kept[1:], depth]))]


def test_a_further_teacher_may_teach_some_kinds_of_records_alone(tmp_path, deep):
    path = labelled(tmp_path, deep)
    rows = read_jsonl(path)
    write_jsonl(path, [row | ({"kind": "on"} if ':"on' in row["answer"] else {}) for row in rows])
    other = save_tiny_llama(tmp_path / "other", layers=1, seed=9)
    train = {"lr": 3e-3, "epochs": 1, "batch_size": 4, "valid_share": 0.2, "dtype": "fp32", "teacher": "online"}
    further = {"model": str(other), "weight": 1.0, "kinds": ["on", "dim"]}
    ctx = context(tmp_path, "train", deep, train=train | {"further_teachers": [further]})
    assert ctx.recipe.train.shares("on") == (0.0, 1.0) and ctx.recipe.train.shares("") == (1.0, 0.0)
    run(ctx)
    assert f"{other} has a share in 6 of 12 records" in ctx.report.notes
    assert all(row["kl"] > 0 for row in read_jsonl(ctx.folder / "metrics.jsonl") if "loss" in row)
    further = further | {"kinds": ["dim"]}
    with pytest.raises(InputError, match=r"expected records of the kinds dim for .*, found none, on; correct kinds"):
        run(context(tmp_path, "train", deep, train=train | {"further_teachers": [further]}))


def test_what_needs_the_teacher_itself_is_refused_with_what_is_kept_of_it(tmp_path, deep):
    for name, value in (("on_policy", 0.5), ("match", {}), ("further_teachers", [{"model": "m", "weight": 0.5}])):
        with pytest.raises(ValueError, match=rf'expected teacher = "online" with .*{name}'):
            context(tmp_path, "train", deep, train={name: value})
    heavy = [{"model": "m", "weight": 0.5}, {"model": "n", "weight": 0.6}]
    with pytest.raises(ValueError, match=r"together less than 1, the teacher has the rest; found 1\.1"):
        context(tmp_path, "train", deep, train={"teacher": "online", "further_teachers": heavy})
    heavy[1] |= {"kinds": ["a"]}
    with pytest.raises(ValueError, match=r"together at most 1 for records of the kind 'a', found 1\.1"):
        context(tmp_path, "train", deep, train={"teacher": "online", "further_teachers": heavy})
    with pytest.raises(ValueError, match=r"together less than 1, the teacher has the rest; found 1"):
        context(tmp_path, "train", deep, train={"teacher": "online", "further_teachers": [heavy[0] | {"weight": 1.0}]})


def test_odd_records_are_told(tmp_path, deep):
    path = labelled(tmp_path, deep)
    rows = read_jsonl(path)
    long = {**rows[1], "id": "long", "answer_ids": rows[1]["answer_ids"] * 60, "logits_key": None}
    write_jsonl(path, [*rows, {**rows[0], "id": "again"}, long])
    ctx = context(tmp_path, "train", deep, student={"cut": {"layers": (0, 2)}})
    run(ctx)
    assert "1 of 14 records longer than the student's 512 tokens, left out: long" in ctx.report.notes
    assert "1 of 14 records of the same text as another, kept: again as r-p0" in ctx.report.notes


def test_in_two_steps_each_arm_is_trained_between_depth_and_width(tmp_path, deep):
    ctx = trained(tmp_path, deep, student={"cut": {"layers": (0, 2), "ffn": 96, "vocab": 352, "steps": 2}})
    models = {path.parent.name: load(path.parent) for path in ctx.folder.glob("*/config.json")}
    arms = ("student", "control")
    assert models.keys() == {"untrained"} | {f"{arm}{step}" for arm in arms for step in ("-wide", "-narrow", "")}
    for name, model in models.items():
        wide = name == "untrained" or name.endswith("-wide")
        assert (model.config.intermediate_size, len(model.model.layers)) == (128 if wide else 96, 2), name
    for arm, other in (arms, arms[::-1]):
        names = ("untrained", f"{arm}-wide", f"{other}-wide", f"{arm}-narrow", arm)
        before, own, theirs, start, end = (models[name].model.layers[1].mlp.up_proj.weight for name in names)
        assert not torch.equal(own, before) and not torch.equal(own, theirs) and not torch.equal(start, end)
        assert {tuple(row) for row in start.tolist()} < {tuple(row) for row in own.tolist()}
    assert ctx.figures["student-wide"]["kd_weight"] == 0.5 and ctx.figures["control-wide"]["kd_weight"] == 0
    assert load_tokenizer(ctx.folder / "student").chat_template == load_tokenizer(deep).chat_template
