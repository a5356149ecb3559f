"""Quantization through llama.cpp: real sizes, fallbacks, determinism, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_builders import save_byte_level, save_llama

from edgedistill.core.errors import InputError, StageError
from edgedistill.export.gguf import export_gguf_f16
from edgedistill.export.imatrix import collect_imatrix
from edgedistill.export.quantize import NEEDS_IMATRIX, SCHEMES, check_label, quantize_gguf, weight_figures
from edgedistill.runtimes.gguf_file import TENSOR_TYPES, read_gguf


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An F16 file whose down projections are 80 wide: no block of 32 fits."""
    folder = tmp_path_factory.mktemp("odd")
    save_byte_level(folder, vocab=512)
    save_llama(folder, rows=512, intermediate_size=80)
    export_gguf_f16(model=folder, out=folder / "f16.gguf")
    return folder / "f16.gguf"


def test_figures_count_every_weight_and_fallback(half: Path, tmp_path: Path) -> None:
    attention, ffn = 64 * (64 + 32 + 32 + 64), 64 * 80
    weights = 512 * 64 + 2 * (attention + 3 * ffn + 2 * 64) + 64
    f16 = weight_figures(half, scheme="F16")
    assert (f16.parameters, f16.fallback_tensors) == (weights, 0)
    assert f16.bits_per_weight == pytest.approx(16 + 16 * 5 * 64 / weights, abs=1e-3)
    for scheme, bits, fallbacks in (("Q8_0", 8.5, 2), ("Q4_0", 4.5, 3)):
        out = tmp_path / f"{scheme}.gguf"
        quantize_gguf(source=half, out=out, scheme=scheme, threads=2)
        found = weight_figures(out, scheme=scheme)
        # both down projections stay F16; Q4_0 wants Q6_K for a tied embedding and gets Q8_0
        embedding, down, vectors = 512 * 64, 2 * ffn, 5 * 64
        rest = weights - embedding - down - vectors
        size = rest * bits + embedding * 8.5 + down * 16 + vectors * 32
        assert (found.parameters, found.fallback_tensors) == (weights, fallbacks)
        assert found.bits_per_weight == pytest.approx(size / weights, abs=1e-3)


def test_same_bytes_whatever_the_threads(half: Path, tmp_path: Path) -> None:
    for threads in (1, 2):
        quantize_gguf(source=half, out=tmp_path / f"{threads}.gguf", scheme="Q4_0", threads=threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def test_refusals_leave_nothing(half: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(InputError, match=r"expected a quantization scheme of Q8_0, Q4_0, .*, found 'Q9_Z'"):
        quantize_gguf(source=half, out=out, scheme="Q9_Z", threads=1)
    with pytest.raises(InputError, match="expected an importance matrix for IQ3_XXS, found none"):
        quantize_gguf(source=half, out=out, scheme="IQ3_XXS", threads=1)
    with pytest.raises(InputError, match=r"expected tensor types of F32, .*, found 'Q7'"):
        quantize_gguf(source=half, out=out, scheme="Q8_0", threads=1, types={"output.weight": "Q7"})
    (tmp_path / "cut.gguf").write_bytes(half.read_bytes()[:-1])
    with pytest.raises(InputError, match="not a whole GGUF file"):
        quantize_gguf(source=tmp_path / "cut.gguf", out=out, scheme="Q8_0", threads=1)
    raw = half.read_bytes()
    (tmp_path / "odd.gguf").write_bytes(raw.replace(b"llama", b"lalma"))
    with pytest.raises(StageError, match=r"llama\.cpp could not quantize .* to Q8_0: .*lalma"):
        quantize_gguf(source=tmp_path / "odd.gguf", out=out, scheme="Q8_0", threads=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "odd.gguf"]
    assert capfd.readouterr() == ("", "")


def test_quantized_file_keeps_metadata_and_tensor_names(half: Path, tmp_path: Path) -> None:
    quantize_gguf(source=half, out=tmp_path / "q.gguf", scheme="Q8_0", threads=1)
    before, after = read_gguf(half), read_gguf(tmp_path / "q.gguf")
    assert before.tensors.keys() == after.tensors.keys()
    changed = {key for key in before.fields if before.fields[key] != after.fields.get(key)}
    assert changed == {"general.file_type"}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose widths are multiples of 256, so that K- and IQ-quants have no fallback."""
    folder = tmp_path_factory.mktemp("wide")
    save_byte_level(folder, vocab=512)
    save_llama(folder, rows=512, hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    export_gguf_f16(model=folder, out=folder / "f16.gguf")
    return folder


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in ("F16", "Q8_0", "Q4_0")])
def test_k_and_iq_quants_with_an_imatrix_are_what_they_say(wide: Path, tmp_path: Path, scheme: str) -> None:
    imatrix = collect_imatrix(wide / "f16.gguf", [list(range(64))], threads=1)
    for name, importances in (("with", imatrix.means()), ("without", None)):
        if importances is not None or scheme not in NEEDS_IMATRIX:
            quantize_gguf(
                source=wide / "f16.gguf", out=tmp_path / name, scheme=scheme, threads=1, importances=importances
            )
    found = weight_figures(tmp_path / "with", scheme=scheme)
    assert found.fallback_tensors == 0 and 2.5 < found.bits_per_weight < 7.5
    check_label(tmp_path / "with", scheme=scheme)
    assert (
        not (tmp_path / "without").exists() or (tmp_path / "with").read_bytes() != (tmp_path / "without").read_bytes()
    )


def test_single_tensors_get_their_own_types(wide: Path, tmp_path: Path) -> None:
    types = {"blk.0.ffn_down.weight": "Q8_0", "blk.0.attn_v.weight": "IQ4_XS"}
    quantize_gguf(source=wide / "f16.gguf", out=tmp_path / "q", scheme="Q4_K_M", threads=1, types=types)
    found = {name: TENSOR_TYPES[t.type_id][0] for name, t in read_gguf(tmp_path / "q").tensors.items()}
    assert {name: found[name] for name in types} == types
    assert found["blk.0.ffn_up.weight"] == "Q4_K"


def test_a_label_that_is_not_what_it_says_is_refused(half: Path, tmp_path: Path) -> None:
    quantize_gguf(source=half, out=tmp_path / "q", scheme="Q4_K_M", threads=1)
    with pytest.raises(StageError, match=r"a file called Q4_K_M would hold 0% of its weights so and spend [\d.]+ bits"):
        check_label(tmp_path / "q", scheme="Q4_K_M")
