"""Records as token sequences with supervised answers, and batches of them in an order that seed and epoch determine.

A position is supervised when the token after it belongs to the answer: the prompt is context, never a target. Batches
hold sequences of like length, padded on the right, where causal attention cannot reach the padding; or several are
packed into a row whose position ids restart, from which transformers' masks keep attention within each sequence.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edgedistill.core.errors import InputError, StageError, shortened
from edgedistill.core.records import Prompt, TeacherRecord
from edgedistill.runtimes.chat import encode, render
from edgedistill.runtimes.logit_cache import LogitCache
from edgedistill.runtimes.tool_chat import spoken

BUCKET_BATCHES = 16  # sequences are sorted by length within windows of this many batches
WORTH_PACKING = 0.9  # packed rows come with a mask of their own: they must save this share of the padded tokens
SHOWN = 3  # records named in a note
LEAST_TOLD = 5e-4  # a share of the teacher's probability that a note rounds to a tenth of a percent
Packing = Literal["auto"] | bool


@dataclass(frozen=True)
class Example:
    """One sequence: the answer is `ids[start:]`; `top_ids`, `top_logprobs` `[answer tokens, k]` where taught.

    A position that keeps fewer tokens than another has -1 for the rest, and for tokens that the student lacks; `lost`
    is the probability of those, summed over the answer. `shares` `[teachers]`, together 1, are those of several online
    teachers in its distributions.
    """

    id: str
    ids: np.ndarray
    start: int
    top_ids: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None
    shares: np.ndarray | None = None
    lost: float = 0.0

    @property
    def supervised(self) -> int:
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Batch:
    """`input_ids` `[rows, length]`; `index` `[n]` are the flat places after which `targets` `[n]` are to be learnt.

    `teacher_ids` (-1: none) and `teacher_logprobs` are `[n, k]`, `taught` bool `[n]`; `position_ids` only when packed,
    `shares` `[n, teachers]` only with several online teachers. `everywhere` `[m]` are the flat places of every token
    that another follows in its sequence; its `weights` are together the number of supervised ones there.
    """

    input_ids: Tensor
    index: Tensor
    targets: Tensor
    teacher_ids: Tensor
    teacher_logprobs: Tensor
    taught: Tensor
    everywhere: Tensor
    weights: Tensor
    position_ids: Tensor | None = None
    shares: Tensor | None = None


def gold_records(prompts: Sequence[Prompt], *, tokenizer, template: str, end_id: int) -> list[TeacherRecord]:
    """Prompts with their right answers, as the model will be asked and should answer; no distributions go with them.

    Raises:
        InputError: a prompt has no answer.
    """
    records = []
    for prompt in prompts:
        if prompt.answer is None:
            raise InputError(f"expected an answer with every gold prompt, found none with prompt {prompt.id}")
        said = spoken(tokenizer, prompt.messages, prompt.answer, template=template)
        records.append(
            TeacherRecord(
                id=prompt.id,
                prompt_id=prompt.id,
                teacher="gold",
                messages=prompt.messages,
                answer=said,
                prompt_ids=tuple(encode(tokenizer, render(tokenizer, prompt.messages, template=template))),
                answer_ids=(*encode(tokenizer, said), end_id),
                kind=prompt.kind,
            )
        )
    return records


def record_examples(
    records: Sequence[TeacherRecord],
    *,
    id_map: np.ndarray | None = None,
    cache: LogitCache | None = None,
    shares: Callable[[str], Sequence[float]] | None = None,
) -> list[Example]:
    """Teacher records with the teacher's distributions, in the student's ids.

    `id_map` int `[teacher vocabulary]` gives the student's id of each teacher token, -1 where it has none; a kept
    distribution loses such tokens to its tail. A record's distributions are those of its own teacher; records without
    a `logits_key` are learnt from their text alone. `shares` gives those of online teachers by a record's kind.

    Raises:
        InputError: a record's distributions are absent or damaged.
        StageError: the student lacks a token of a record.
    """
    examples = []
    for record in records:
        ids = np.array([*record.prompt_ids, *record.answer_ids])
        if id_map is not None:
            mapped = id_map[ids]
            if (mapped < 0).any():
                raise StageError(
                    f"record {record.id} uses the teacher's token {int(ids[mapped < 0][0])}, which the student's "
                    "vocabulary does not have; raise student.cut.vocab"
                )
            ids = mapped
        top_ids = top_logprobs = None
        lost = 0.0
        if cache is not None and record.logits_key is not None:
            text = {"prompt_ids": record.prompt_ids, "answer_ids": record.answer_ids}
            row = cache.row(**text, record=record.id, teacher=record.teacher)
            top_ids = row.ids.astype(np.int64)
            top_ids = top_ids if id_map is None else np.where(top_ids < 0, -1, id_map[top_ids])
            top_logprobs = row.logprobs
            lost = float(np.exp(top_logprobs[(row.ids >= 0) & (top_ids < 0)]).sum())
        parts = None if shares is None else np.array(shares(record.kind), np.float32)
        examples.append(Example(record.id, ids, len(record.prompt_ids), top_ids, top_logprobs, parts, lost))
    return examples


def fitting(examples: Sequence[Example], *, longest: int) -> tuple[list[Example], list[str]]:
    """Examples of at most `longest` tokens with something to learn, and the ids of those that are not."""
    fits = [e for e in examples if len(e.ids) <= longest and e.supervised > 0 and e.start > 0]
    kept = {id(e) for e in fits}
    return fits, [e.id for e in examples if id(e) not in kept]


def oddities(examples: Sequence[Example], *, longest: int) -> list[str]:
    """What a user should know of the records: how many are empty, too long or there twice, and the first of them.

    And how much of the teacher's distributions is on tokens that the student lacks, which only its tail can tell.
    """
    seen: dict[bytes, str] = {}
    found: dict[str, list[str]] = {
        "with nothing to learn, left out": [],
        f"longer than the student's {longest} tokens, left out": [],
        "of the same text as another, kept": [],
    }
    empty, long, twice = found.values()
    for e in examples:
        if e.supervised <= 0 or e.start <= 0:
            empty.append(e.id)
        elif len(e.ids) > longest:
            long.append(e.id)
        elif (key := np.append(e.ids, e.start).tobytes()) in seen:
            twice.append(f"{e.id} as {seen[key]}")
        else:
            seen[key] = e.id
    if share := _lost_share(examples):
        what = f"of whose teacher's probability tokens that the student lacks have a part ({100 * share:.1f} % of all)"
        lossy = sorted((e for e in examples if e.lost), key=lambda e: -e.lost / e.supervised)
        found[f"{what}, learnt as one sum"] = [e.id for e in lossy]
    return [
        f"{len(ids)} of {len(examples)} records {what}: {', '.join(ids[:SHOWN])}{', …' if len(ids) > SHOWN else ''}"
        for what, ids in found.items()
        if ids
    ]


def _lost_share(examples: Sequence[Example]) -> float:
    """Of all that was taught, 0 where it would be told as nothing."""
    share = sum(e.lost for e in examples) / max(1, sum(e.supervised for e in examples if e.top_ids is not None))
    return share if share >= LEAST_TOLD else 0.0


def untaught(records: Sequence[TeacherRecord], examples: Sequence[Example]) -> list[str]:
    """How many of the records have their teacher's distributions, of several teachers also by teacher; none if all."""
    of, taught = Counter(r.teacher for r in records), Counter[str]()
    for record, example in zip(records, examples, strict=True):
        taught[record.teacher] += example.top_ids is not None
    if taught == of:
        return []
    each = ", ".join(f"{taught[name]} of {count} of {shortened(name, most=40)}" for name, count in of.items())
    return [
        f"{taught.total()} of {of.total()} records have their teacher's distributions"
        f"{f' ({each})' if len(of) > 1 else ''}, the others are learnt from their text alone"
    ]


def split_examples(examples: Sequence[Example], *, share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """A part to learn from and `share` of it, at least one, to validate on; chosen by the hash of seed and id."""
    ranked = sorted(examples, key=lambda e: hashlib.sha256(f"{seed}/{e.id}".encode()).digest())
    count = min(len(ranked) - 1, max(1, round(share * len(ranked)))) if share > 0 else 0
    chosen = {e.id for e in ranked[:count]}
    return [e for e in examples if e.id not in chosen], [e for e in examples if e.id in chosen]


def epoch_batches(lengths: Sequence[int], *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of every sequence once, in batches of like length; seed and epoch alone determine the order."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    window = batch_size * BUCKET_BATCHES
    batches: list[list[int]] = []
    for begin in range(0, len(order), window):
        near = sorted(order[begin : begin + window].tolist(), key=lambda i: lengths[i])
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def micro_batches(
    examples: Sequence[Example], *, most_tokens: int, packing: Packing = "auto"
) -> list[list[list[Example]]]:
    """Micro-batches of rows of sequences, each of at most `most_tokens` places; a longer row stands alone.

    A row holds one sequence, or several if `packing`; "auto" packs where it saves a tenth of the places.
    """
    padded = _cut([[e] for e in examples], most_tokens=most_tokens)
    if packing is False:
        return padded
    packed = _cut(pack(examples), most_tokens=most_tokens)
    worth = packing is True or places(packed) <= WORTH_PACKING * places(padded)
    return packed if worth else padded


def pack(examples: Sequence[Example], *, width: int = 0) -> list[list[Example]]:
    """Sequences in rows no longer than `width` or the longest of them: first fit, longest first."""
    longest_first = sorted(examples, key=lambda e: -len(e.ids))
    width = max(width, len(longest_first[0].ids))
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in longest_first:
        length = len(example.ids)
        place = next((i for i, left in enumerate(room) if left >= length), None)
        if place is None:
            rows.append([example])
            room.append(width - length)
        else:
            rows[place].append(example)
            room[place] -= length
    return rows


def _cut(rows: Sequence[list[Example]], *, most_tokens: int) -> list[list[list[Example]]]:
    parts: list[list[list[Example]]] = []
    for row in sorted(rows, key=_length):
        if parts and _length(row) * (len(parts[-1]) + 1) <= most_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def places(parts: Sequence[Sequence[list[Example]]]) -> int:
    """Tokens and padding of all micro-batches."""
    return sum(len(part) * max(map(_length, part)) for part in parts)


def _length(row: Sequence[Example]) -> int:
    return sum(len(e.ids) for e in row)


def collate(examples: Sequence[Example], *, pad_id: int = 0) -> Batch:
    """One batch with a row for each sequence, padded on the right."""
    return collate_rows([[e] for e in examples], pad_id=pad_id)


def collate_rows(rows: Sequence[Sequence[Example]], *, pad_id: int = 0) -> Batch:
    """One batch of rows of sequences; where a row has several, position ids restart with each, and with the padding."""
    examples = [e for row in rows for e in row]
    width = max(map(_length, rows))
    input_ids = np.full((len(rows), width), pad_id)
    position_ids = np.zeros((len(rows), width), np.int64)
    offsets = []
    for place, row in enumerate(rows):
        begin = 0
        for example in row:
            end = begin + len(example.ids)
            input_ids[place, begin:end] = example.ids
            position_ids[place, begin:end] = np.arange(end - begin)
            offsets.append(place * width + begin)
            begin = end
        position_ids[place, begin:] = np.arange(width - begin)
    widths = [e.top_ids.shape[1] for e in examples if e.top_ids is not None]
    k = max(widths, default=1)
    n = sum(e.supervised for e in examples)
    teacher_ids = np.full((n, k), -1)
    teacher_logprobs = np.zeros((n, k), np.float32)
    taught = np.zeros(n, bool)
    begin = 0
    for example in examples:
        if example.top_ids is not None:
            here = slice(begin, begin + example.supervised)
            teacher_ids[here, : example.top_ids.shape[1]] = example.top_ids
            teacher_logprobs[here, : example.top_ids.shape[1]] = example.top_logprobs
            taught[here] = True
        begin += example.supervised
    index = [o + np.arange(e.start, len(e.ids)) - 1 for o, e in zip(offsets, examples, strict=True)]
    everywhere = [o + np.arange(len(e.ids) - 1) for o, e in zip(offsets, examples, strict=True)]
    shares = [e.shares for e in examples if e.shares is not None]
    counts, followed = [e.supervised for e in examples], [len(e.ids) - 1 for e in examples]
    return Batch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64)),
        index=torch.from_numpy(np.concatenate(index)),
        targets=torch.from_numpy(np.concatenate([e.ids[e.start :] for e in examples]).astype(np.int64)),
        teacher_ids=torch.from_numpy(teacher_ids),
        teacher_logprobs=torch.from_numpy(teacher_logprobs),
        taught=torch.from_numpy(taught),
        everywhere=torch.from_numpy(np.concatenate(everywhere)),
        weights=torch.from_numpy(np.repeat(np.divide(counts, followed, dtype=np.float32), followed)),
        position_ids=torch.from_numpy(position_ids) if len(examples) > len(rows) else None,
        shares=torch.from_numpy(np.repeat(np.stack(shares), counts, axis=0)) if shares else None,
    )
