"""The kept tokenizer gives transformers' ids on hostile text, whatever class transformers chose, and never loads it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgedistill.core.errors import InputError
from edgedistill.core.records import Message
from edgedistill.runtimes import chat
from edgedistill.runtimes.plain_tokenizer import PLAIN_FILE, load_plain, save_plain

PIECES = (
    " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\x00", "\x7f", "▁", "Ġ", "<0x0A>",
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|> ", "<|endoftext|>", "<|im_", "a", "Turn on", " the light", "42",
    "3.14", "é", "e\u0301", "ß", "ﬁ", "日本語", "한국어", "العربية", "हिन्दी", "👩‍👩‍👧", "🇧🇪",
    "\U000e0041", "\uffff", '{"a": [1]}',
    "don't", "…", "“”", "a" * 40, "\\n", "=" * 9,
)  # fmt: skip


def hostile(count: int) -> list[str]:
    rng = random.Random(5)
    drawn = ["".join(rng.choices(PIECES, k=rng.randint(1, 12))) for _ in range(count)]
    points = [chr(c) for c in range(0x20, 0x11000, 37) if not 0xD800 <= c < 0xE000]
    return ["", *PIECES, *drawn, *("".join(rng.choices(points, k=8)) for _ in range(count // 4))]


def kept_and_built(source: Path, folder: Path) -> tuple[Any, Any]:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf"))
    built = chat.load_tokenizer(folder)
    save_plain(built, folder)
    kept = load_plain(folder)
    assert kept is not None
    return kept, built


def same_ids(kept: Any, built: Any) -> None:
    texts = hostile(500)
    assert len(set(texts)) > 500
    wrong = [text for text in texts if chat.encode(kept, text) != chat.encode(built, text)]
    assert not wrong, repr(wrong[:3])
    assert kept.special_tokens_map == built.special_tokens_map and kept.chat_template == built.chat_template


def test_a_real_tokenizer_gives_the_same_ids(smollm2: Any, tmp_path: Path) -> None:
    kept, built = kept_and_built(smollm2.folder, tmp_path / "kept")
    same_ids(kept, built)
    asked = [Message(role="user", content="Füge <|im_end|> hinzu\n")]
    template = chat.template_of(kept)
    assert template == chat.template_of(built)
    assert chat.render(kept, asked, template=template) == chat.render(built, asked, template=template)
    ends = chat.end_ids(tmp_path / "kept")
    assert chat.turn_end(kept, template=template, ends=ends) == chat.turn_end(built, template=template, ends=ends)


@pytest.mark.parametrize("class_name", ["TokenizersBackend", "LlamaTokenizer"])
@pytest.mark.parametrize("scheme", [None, "first"])
def test_a_sentencepiece_like_one_gives_the_same_ids(tmp_path: Path, class_name: str, scheme: str | None) -> None:
    """Under the name of a class of its own transformers builds another tokenizer than tokenizer.json says."""
    from plain_builders import save_pieces

    save_pieces(tmp_path / "made", scheme=scheme)
    settings = tmp_path / "made" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": class_name}))
    kept, built = kept_and_built(tmp_path / "made", tmp_path / "kept")
    same_ids(kept, built)


def test_special_tokens_that_are_read_as_text_stay_text(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "made")
    settings = tmp_path / "made" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"split_special_tokens": True}))
    kept, built = kept_and_built(tmp_path / "made", tmp_path / "kept")
    assert len(chat.encode(kept, "<|im_end|>")) > 1
    same_ids(kept, built)


def test_one_of_other_files_does_not_count_and_damage_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    assert load_plain(tiny_llama) is None
    kept_and_built(tiny_llama, tmp_path / "kept")
    whole = json.loads((tmp_path / "kept" / PLAIN_FILE).read_text())
    for wrong in ({"backend": "{}"}, {"backend": 3}, {"special_tokens_map": None}):
        (tmp_path / "kept" / PLAIN_FILE).write_text(json.dumps(whole | wrong))
        with pytest.raises(InputError, match=r"tokenizer\.plain\.json: expected the tokenizer kept there, found"):
            load_plain(tmp_path / "kept")
    (tmp_path / "kept" / PLAIN_FILE).write_text(json.dumps(whole))
    (tmp_path / "kept" / "config.json").write_text("{}")
    assert load_plain(tmp_path / "kept") is None


def test_writing_records_of_an_api_teacher_loads_no_torch(tiny_llama: Path, tmp_path: Path) -> None:
    kept_and_built(tiny_llama, tmp_path / "kept")
    code = (
        "import sys; from pathlib import Path\n"
        "from edgedistill.core.records import Message\n"
        "from edgedistill.synth.api_records import student_tokens\n"
        "from edgedistill.synth.rows import make_prompt\n"
        "tokens = student_tokens(Path(sys.argv[1]), chat_template=None, teacher='t', distributions=True)\n"
        "print(len(tokens.prompt(make_prompt([Message(role='user', content='on')]))), tokens.text('on'))\n"
        "print('torch' in sys.modules, 'transformers.models.auto' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "kept"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "False False"
