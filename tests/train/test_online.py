"""A teacher beside its student: its distributions, states and attention, and the student's own answers judged by it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_loop import Stop, settings
from tiny_models import save_tiny_llama
from tiny_training import fresh_accelerator, load, random_examples

from edgedistill.core.errors import InputError
from edgedistill.train.data import Example, collate, collate_rows, pack
from edgedistill.train.divergence import Divergence
from edgedistill.train.fused import Online, head_losses
from edgedistill.train.loop import train_model
from edgedistill.train.matching import (
    Matching,
    add_projections,
    attention_divergence,
    drop_projections,
    matching_loss,
    pair_layers,
    relative_error,
)
from edgedistill.train.online import LiveMixture, load_live
from edgedistill.train.sampling import OnPolicy, is_sampled, sample_answers
from edgedistill.train.step import step_losses

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)
VOCAB = 384


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Wider and deeper than the student."""
    return save_tiny_llama(tmp_path_factory.mktemp("online") / "llama", layers=4, hidden=96, seed=7)


@pytest.fixture
def live(teacher):
    return load_live(teacher, id_map=np.arange(VOCAB))


def logits(model, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids)[None]).logits[0].double()


@pytest.mark.parametrize("packed", [False, True])
def test_online_loss_is_the_reference_over_whole_vocabularies(tiny_llama, teacher, live, packed):
    student, examples = load(tiny_llama), random_examples(6)
    batch = collate_rows(pack(examples, width=40)) if packed else collate(examples)
    found = step_losses(student, batch, kd_weight=0.7, live=live)
    other, expected = load(teacher), 0.0
    for e in examples:
        p, q = (torch.log_softmax(logits(m, e.ids)[e.start - 1 : -1], -1) for m in (other, student))
        ce = -q[torch.arange(e.supervised), torch.from_numpy(e.ids[e.start :])].sum()
        expected += 0.3 * ce + 0.7 * (p.exp() * (p - q)).sum()
    assert found.total.item() == pytest.approx(float(expected), rel=1e-5)


def test_a_trimmed_student_is_taught_over_the_tokens_it_has(tiny_llama, teacher):
    """The student's ids are another order of some of the teacher's; the teacher is read in its own."""
    kept = np.random.default_rng(1).permutation(VOCAB)[:200]
    id_map = np.full(VOCAB, -1)
    id_map[kept] = np.arange(200)
    live = load_live(teacher, id_map=id_map)
    student, (e,) = load(tiny_llama), random_examples(1, seed=3)
    ids = np.random.default_rng(2).integers(0, 200, len(e.ids))
    e = type(e)(e.id, ids, e.start)
    found = step_losses(student, collate([e]), kd_weight=1.0, live=live)
    p = torch.log_softmax(logits(load(teacher), kept[ids])[e.start - 1 : -1][:, kept], -1)
    q = torch.log_softmax(logits(student, ids)[e.start - 1 : -1][:, :200], -1)
    assert found.total.item() == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [(151_936, 152_064), (152_064, 151_936)])
@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "jsd"])
def test_padded_vocabularies_match_the_truncated_reference(ours, theirs, kind):
    """Two paddings of one tokenizer's 151,665 tokens: where there is no token, there is no divergence."""
    torch.manual_seed(0)
    n, width, tokens = 5, 8, 151_665
    hidden, weight = torch.randn(n, width).double(), torch.randn(ours, width).double()
    of_teacher, its_head = torch.randn(n, width).double(), torch.randn(theirs, width).double()
    hidden.requires_grad_(), weight.requires_grad_()
    targets = torch.randint(0, tokens, (n,))
    how = Divergence(kind)
    loss = head_losses(
        hidden, weight, targets, teacher=Online(of_teacher, its_head[:tokens]), kd_weight=1.0, how=how
    ).total
    gradients = torch.autograd.grad(loss, (hidden, weight))
    p, q = torch.log_softmax(of_teacher @ its_head[:tokens].T, 1), torch.log_softmax(hidden @ weight[:tokens].T, 1)
    mixed = torch.logaddexp(p, q) - np.log(2)
    expected = {
        "forward-kl": (p.exp() * (p - q)).sum(),
        "reverse-kl": (q.exp() * (q - p)).sum(),
        "jsd": 0.5 * (p.exp() * (p - mixed)).sum() + 0.5 * (q.exp() * (q - mixed)).sum(),
    }[kind]
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        assert (found - wanted).norm() / wanted.norm() < 1e-10
    assert not gradients[1][tokens:].any()


def test_padding_rows_of_a_student_have_no_part(tiny_llama, teacher):
    live = load_live(teacher, id_map=np.concatenate((np.arange(300), np.full(VOCAB - 300, -1))))
    assert live.weight.shape == (300, 96) and live.weight.data_ptr() == load_head(live).data_ptr()


def load_head(live) -> torch.Tensor:
    return live.model.get_output_embeddings().weight


def test_a_teacher_that_caps_its_logits_is_refused(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    Gemma2ForCausalLM(Gemma2Config(vocab_size=64, **sizes, **heads)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"found final_logit_softcapping .*teacher = \"cached\""):
        load_live(tmp_path, id_map=np.arange(64))


@pytest.mark.parametrize("missing", [0, 7])
def test_a_student_of_other_tokens_is_refused(teacher, missing):
    id_map = np.arange(VOCAB) if missing else np.full(VOCAB, -1)
    id_map[missing] = -1
    with pytest.raises(
        InputError, match=rf"found none for its token {missing}; choose a teacher of the same tokenizer"
    ):
        load_live(teacher, id_map=id_map)


def test_layers_are_paired_evenly_or_as_told():
    assert pair_layers((), student=2, teacher=4) == ((0, 1), (1, 3))
    assert pair_layers([], student=3, teacher=3) == ((0, 0), (1, 1), (2, 2))
    assert pair_layers([[1, 3]], student=2, teacher=4) == ((1, 3),)
    assert pair_layers((), student=3, teacher=8, kept=[0, 2, 7]) == ((0, 1), (1, 6), (2, 7))
    assert pair_layers([[1, 3]], student=2, teacher=4, kept=[0, 3]) == ((1, 3),)
    with pytest.raises(InputError, match=r"below 2 and a teacher's below 4, found \[2, 3\]"):
        pair_layers([[2, 3]], student=2, teacher=4)


@pytest.mark.parametrize("positions", ["all", "supervised"])
@pytest.mark.parametrize("packed", [False, True])
def test_matching_is_the_reference_of_states_and_maps(tiny_llama, teacher, live, packed, positions):
    student, examples = load(tiny_llama), random_examples(5)
    for model in (student, live.model):
        model.set_attn_implementation("eager")
    how = Matching(hidden=0.5, attention=2.0, layers=((0, 1), (1, 3)), positions=positions)
    add_projections(student, how=how, widths=(64, 96), seed=1)
    matrices = [p.detach().double() for p in student.matching]
    assert len(matrices) == 2 and all(m.shape == (96, 64) for m in matrices)
    batch = collate_rows(pack(examples, width=40)) if packed else collate(examples)
    found = step_losses(student, batch, kd_weight=0.5, live=live, matching=how).match
    other, expected = load(teacher), 0.0
    other.set_attn_implementation("eager")
    for e in examples:
        ids = torch.from_numpy(e.ids)[None]
        with torch.no_grad():
            ours, theirs = (
                m.model(input_ids=ids, output_hidden_states=True, output_attentions=True) for m in (student, other)
            )
        rows = slice(e.start - 1 if positions == "supervised" else 0, -1)
        weight = e.supervised / (len(e.ids) - 1 - rows.start)
        for place, (i, j) in enumerate(how.layers):
            x, y = ours.hidden_states[i + 1][0, rows].double(), theirs.hidden_states[j + 1][0, rows].double()
            expected += weight * 0.5 * ((x @ matrices[place].T - y).square().sum(-1) / y.square().sum(-1)).sum() / 2
            p, q = (a[0].double().mean(0)[rows] for a in (theirs.attentions[j], ours.attentions[i]))
            seen = p > 0
            expected += weight * 2.0 * (p[seen] * (p[seen] / q[seen]).log()).sum() / 2
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    drop_projections(student)
    assert not any("matching" in name for name in student.state_dict())


def test_equal_widths_begin_with_the_identity_and_a_twin_has_nothing_to_match(tiny_llama):
    student = load(tiny_llama)
    how = Matching(hidden=1.0, attention=1.0, layers=((0, 0), (1, 1)))
    student.set_attn_implementation("eager")
    add_projections(student, how=how, widths=(64, 64), seed=0)
    twin = load_live(tiny_llama, id_map=np.arange(VOCAB))
    twin.model.set_attn_implementation("eager")
    found = step_losses(student, collate(random_examples(3)), kd_weight=0.5, live=twin, matching=how)
    assert abs(float(found.match)) < 1e-5 and abs(float(found.kl)) < 1e-5


def test_errors_and_divergences_of_known_values():
    assert relative_error(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 3.0]])).item() == pytest.approx(0.4)
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]])
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert attention_divergence(p, q).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("attention", [0.0, 1.0])
def test_matching_is_learnt_and_leaves_the_student_as_it_was_made(tiny_llama, tmp_path, live, attention):
    student = load(tiny_llama)
    names = {name for name, _ in student.named_parameters()}
    how = Matching(hidden=1.0, attention=attention, layers=((0, 1), (1, 3)))
    train_model(
        student,
        train=random_examples(16),
        live=live,
        matching=how,
        **settings(tmp_path, epochs=6, lr=1e-3, kd_weight=1),
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["match"] < 0.9 * rows[0]["match"] and rows[-1]["kl"] < rows[0]["kl"]
    assert {name for name, _ in student.named_parameters()} == names


def test_samples_are_the_students_own_end_once_and_repeat_with_their_seed(tiny_llama):
    student, examples = load(tiny_llama), random_examples(8)
    how = OnPolicy(share=1.0, max_new_tokens=12, ends=(2,), known=300)
    state = torch.get_rng_state()
    one, same, other = (sample_answers(student, examples, how=how, seed=(0, n, 0)) for n in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a.ids, b.ids) for a, b in zip(one, other, strict=True))
    for e, drawn in zip(examples, one, strict=True):
        answer = drawn.ids[e.start :].tolist()
        assert drawn.ids[: e.start].tolist() == e.ids[: e.start].tolist() and drawn.top_ids is None
        assert 1 <= len(answer) <= 12 and max(answer) < 300 and 2 not in answer[:-1]


def test_samples_follow_the_students_distribution(tiny_llama):
    """The first token of many draws against the probabilities after a padded prompt."""
    student = load(tiny_llama)
    with torch.no_grad():
        student.model.norm.weight.mul_(3)
    short, long = random_examples(1, seed=5, low=4, high=5)[0], random_examples(1, seed=6, low=12, high=13)[0]
    how = OnPolicy(share=1.0, max_new_tokens=1, ends=(2,), known=VOCAB)
    drawn = sample_answers(student, [*[short] * 400, long], how=how, seed=(1,))[:400]
    counts = np.bincount([e.ids[e.start] for e in drawn], minlength=VOCAB) / 400
    p = torch.softmax(logits(student, short.ids)[short.start - 1], -1).numpy()
    assert p.max() > 0.05
    likely = p > 0.02
    assert np.abs(counts - p)[likely].max() < 4 * np.sqrt(p.max() / 400)


def test_the_share_of_sampled_steps_is_the_recipes():
    drawn = [is_sampled(step, share=0.3, seed=0) for step in range(1000)]
    assert 250 < sum(drawn) < 350
    assert drawn == [is_sampled(step, share=0.3, seed=0) for step in range(1000)]
    assert not any(is_sampled(step, share=0.0, seed=0) for step in range(50))
    assert all(is_sampled(step, share=1.0, seed=0) for step in range(50))


def test_several_teachers_are_the_mean_of_their_distributions(tiny_llama, teacher, live, tmp_path):
    other = load_live(save_tiny_llama(tmp_path / "other", layers=1, seed=11), id_map=np.arange(VOCAB))
    mixture, student = LiveMixture((live, other)), load(tiny_llama)
    examples = shared(random_examples(6))
    for batch in (collate(examples), collate_rows(pack(examples, width=40)), collate(examples[:1])):
        found = step_losses(student, batch, kd_weight=1.0, live=mixture)
        expected = 0.0
        for e in examples if len(batch.input_ids) > 1 else examples[:1]:
            p, o, q = (torch.softmax(logits(m, e.ids)[e.start - 1 : -1], -1) for m in (*mixture.models, student))
            mean = e.shares[0] * p + e.shares[1] * o
            expected += (mean * (mean / q).log()).sum()
        assert found.total.item() == pytest.approx(float(expected), rel=1e-5)
    assert mixture.known == VOCAB
    with pytest.raises(ValueError, match="expected examples with the shares of several teachers"):
        mixture.look(collate(random_examples(2)))


def shared(examples: list[Example]) -> list[Example]:
    """Examples with the shares of two teachers: one of them alone, the other alone, both."""
    shares = np.array([[1, 0], [0, 1], [0.75, 0.25]], np.float32)
    return [replace(e, shares=shares[i % 3]) for i, e in enumerate(examples)]


def test_a_teacher_is_asked_for_the_rows_it_has_a_share_in(teacher, live, tmp_path):
    other = load_live(save_tiny_llama(tmp_path / "other", layers=1, seed=11), id_map=np.arange(VOCAB))
    asked: dict[int, list[int]] = {0: [], 1: []}
    for number, each in enumerate((live, other)):
        each.model.get_decoder().register_forward_pre_hook(
            lambda _, args, named, number=number: asked[number].append(len(named["input_ids"])), with_kwargs=True
        )
    mixture, examples = LiveMixture((live, other)), shared(random_examples(6))
    mixture.look(collate(examples))
    assert asked == {0: [4], 1: [4]}
    mixture.look(collate(examples[:1]))
    assert asked == {0: [4, 1], 1: [4]}
    mixture.look(collate(examples[1:2]), output_hidden_states=True)  # inside, the student follows the first
    assert asked == {0: [4, 1, 1], 1: [4, 1]}


@pytest.mark.parametrize("matched", [None, "all", "supervised"])
def test_no_split_of_a_step_changes_what_teachers_by_record_teach(tiny_llama, live, tmp_path, matched):
    other = load_live(save_tiny_llama(tmp_path / "other", layers=1, seed=11), id_map=np.arange(VOCAB))
    student, examples = load(tiny_llama), shared(random_examples(9))
    more = {"live": LiveMixture((live, other)), "kd_weight": 0.5}
    if matched:
        more["matching"] = Matching(hidden=1.0, attention=0.0, layers=((0, 1), (1, 3)), positions=matched)
        add_projections(student, how=more["matching"], widths=(64, 96), seed=1)

    def gradient(parts: list[list[Example]], *, width: int = 0) -> torch.Tensor:
        student.zero_grad()
        for part in parts:
            batch = collate_rows(pack(part, width=width)) if width else collate(part)
            (step_losses(student, batch, **more).total / sum(e.supervised for e in examples)).backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    whole = gradient([examples])
    for split in (gradient([[e] for e in examples]), gradient([examples[:4], examples[4:]], width=40)):
        assert (split - whole).norm() / whole.norm() < 1e-5


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_resume_with_an_online_teacher_is_bit_exact(tiny_llama, tmp_path, teacher, share):
    def run(folder, report=None):
        student, live = load(tiny_llama), load_live(teacher, id_map=np.arange(VOCAB))
        how = OnPolicy(share=share, max_new_tokens=6, ends=(2,), known=VOCAB) if share else None
        match = Matching(hidden=1.0, attention=0.0, layers=((0, 1), (1, 3)))
        changes = {"report": report} if report else {}
        train_model(
            student, train=random_examples(12), live=live, matching=match, on_policy=how,
            **settings(folder, valid=random_examples(4, seed=9), **changes),
        )  # fmt: skip
        return student

    whole = run(tmp_path / "a")
    for at in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", report=Stop(at))
    parts = run(tmp_path / "b")
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), parts.parameters(), strict=True))
    if share:
        rows = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
        assert {row["sampled"] for row in rows if "sampled" in row} == {0, 1}


def test_on_policy_brings_the_student_to_its_teacher(tiny_llama, tmp_path, live):
    student = load(tiny_llama)
    how = OnPolicy(share=1.0, max_new_tokens=6, ends=(2,), known=VOCAB)
    train_model(
        student, train=random_examples(16), live=live, on_policy=how, how=Divergence("jsd"),
        **settings(tmp_path, epochs=20, lr=1e-2, batch_size=8),
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([row["kl"] for row in rows[-5:]]) < 0.8 * rows[0]["kl"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["kl"])


def test_matching_without_weight_costs_nothing():
    how = Matching(hidden=0.0, attention=0.0, layers=((0, 0),))
    assert how.wanted() == {"output_hidden_states": False, "output_attentions": False}
    empty = SimpleNamespace(hidden_states=None, attentions=None)
    batch = collate(random_examples(2))
    assert float(matching_loss(empty, empty, batch=batch, how=how, projections=None)) == 0
