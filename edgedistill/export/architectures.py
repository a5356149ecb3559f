"""The model families that are exported, each described by what sets it apart, and the shape its config.json states.

A family is here only where its GGUF equals the one of llama.cpp's own converter and both engines give transformers'
logits; what llama.cpp would compute otherwise is refused when the shape is read, or told as a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json
from edgedistill.export.rope import Rope, read_rope
from edgedistill.quant.plan import EMBEDDING, HEAD

NO_ROPE_STEP = 4  # llama.cpp leaves the rotation out of every fourth layer of a SmolLM3
FULL_ATTENTION_STEP = 6  # and lets every sixth layer of a Gemma 3 see all of the text, unless the file says otherwise
GEMMA_27B_LAYERS = 62  # by which llama.cpp knows the one Gemma 3 that scales its scores by hidden / heads


@dataclass(frozen=True)
class Architecture:
    """What sets a family apart: its GGUF name, tensors, transforms, and which metadata keys its files carry.

    `rope_types` are those that llama.cpp's graph of this family follows. `theta`, `activation` and `tied` hold where
    config.json says nothing. `permuted`: query and key rows change places, because llama.cpp rotates neighbours.
    `norm_offset` is added to stored norm weights. `keys` beyond the common ones: key_length, rotary, vocab, window.
    """

    family: str
    name: str
    rope_types: tuple[str, ...]
    keys: frozenset[str]
    theta: float = 10000.0
    local_theta: float | None = None
    activation: str = "silu"
    tied: bool = False
    permuted: bool = False
    fused: bool = False
    head_norms: bool = False
    branch_norms: bool = False
    norm_offset: float = 0.0
    qkv_bias: bool = False
    optional_biases: bool = False
    free_head_dim: bool = True


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(
        family="Llama 3.x and SmolLM2",
        name="llama",
        rope_types=("default", "linear", "llama3", "yarn"),
        keys=frozenset({"key_length", "rotary", "vocab"}),
        permuted=True,
        optional_biases=True,
    ),
    "SmolLM3ForCausalLM": Architecture(
        family="SmolLM3",
        name="smollm3",
        rope_types=("default", "linear", "yarn"),
        keys=frozenset({"rotary", "vocab"}),
        theta=2000000.0,
        tied=True,
        permuted=True,
    ),
    "Qwen2ForCausalLM": Architecture(
        family="Qwen2 and Qwen2.5",
        name="qwen2",
        rope_types=("default", "linear", "yarn"),
        keys=frozenset(),
        qkv_bias=True,
        free_head_dim=False,
    ),
    "Qwen3ForCausalLM": Architecture(
        family="Qwen3",
        name="qwen3",
        rope_types=("default", "linear", "yarn"),
        keys=frozenset({"key_length"}),
        head_norms=True,
    ),
    "Phi3ForCausalLM": Architecture(
        family="Phi-3, Phi-3.5 and Phi-4-mini",
        name="phi3",
        rope_types=("default", "longrope"),
        keys=frozenset({"rotary", "window"}),
        fused=True,
        free_head_dim=False,
    ),
    "Gemma3ForCausalLM": Architecture(
        family="Gemma 3 (text)",
        name="gemma3",
        rope_types=("default", "linear"),
        keys=frozenset({"key_length", "window"}),
        theta=1000000.0,
        local_theta=10000.0,
        activation="gelu_pytorch_tanh",
        tied=True,
        head_norms=True,
        branch_norms=True,
        norm_offset=1.0,
    ),
}


@dataclass(frozen=True)
class ModelShape:
    """What config.json says of a model: sizes, biases, rotation, and the layers whose view `window` limits.

    `sliding` has one entry per layer, empty where no layer's view is limited. `head_dim_stated`: config.json names it.
    `softcap` bounds the final logits, None where nothing does.
    """

    architecture: Architecture
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_stated: bool
    vocab: int
    context: int
    eps: float
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    rope: Rope
    window: int | None
    sliding: tuple[bool, ...]
    softcap: float | None

    @property
    def limits(self) -> tuple[str, ...]:
        """Sentences on where llama.cpp computes otherwise, whatever file it is given."""
        found = []
        if self.architecture.name == "phi3" and self.window and self.window < self.context:
            found.append(
                f"llama.cpp lets a token of a Phi see all of the text before it, the model {self.window} tokens of it"
            )
        if self.rope.kind == "longrope":
            found.append(
                "llama.cpp takes the factors for long text wherever its context is longer than "
                f"{self.rope.original_context} tokens, the model where the text is"
            )
        return tuple(found)


def families_in_words() -> str:
    """The list that a refusal names."""
    return ", ".join(f"{known.family} ({name})" for name, known in ARCHITECTURES.items())


def read_shape(model: Path) -> ModelShape:
    """Read and check config.json.

    Raises:
        InputError: an architecture that is not on the list, or a setting of it that llama.cpp does not follow.
    """
    path = model / "config.json"
    config = read_json(path)
    found = (config.get("architectures") or ["none"])[0]
    known = ARCHITECTURES.get(found)
    if known is None:
        raise InputError(
            f"{path}: expected an architecture that GGUF export knows ({families_in_words()}), found {found}; "
            "choose a model of one of these families"
        )
    try:
        shape = _shape(config, known=known, path=path)
    except KeyError as e:
        raise InputError(
            f"{path}: expected the entry {e.args[0]!r}, found none; save the model's config again"
        ) from None
    _check_followed(config, shape=shape, path=path)
    return shape


def _shape(config: dict[str, Any], *, known: Architecture, path: Path) -> ModelShape:
    heads, hidden, layers = config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]
    head_dim, context = config.get("head_dim") or hidden // heads, config["max_position_embeddings"]
    sliding = _sliding(config, known=known, layers=layers)
    return ModelShape(
        architecture=known,
        layers=layers,
        hidden=hidden,
        ffn=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        head_dim_stated=bool(config.get("head_dim")),
        vocab=config["vocab_size"],
        context=context,
        eps=config["rms_norm_eps"],
        tied=bool(config.get("tie_word_embeddings", known.tied)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        rope=read_rope(
            config,
            types=known.rope_types,
            theta=known.theta,
            local_theta=known.local_theta,
            head_dim=head_dim,
            context=context,
            path=path,
        ),
        window=config.get("sliding_window"),
        sliding=sliding,
        softcap=config.get("final_logit_softcapping"),
    )


def _sliding(config: dict[str, Any], *, known: Architecture, layers: int) -> tuple[bool, ...]:
    """Which layers see a window only, as transformers decides it from the settings of the family."""
    if known.name == "phi3":
        return (True,) * layers if config.get("sliding_window") else ()
    stated = config.get("layer_types")
    if known.name == "gemma3":
        step = config.get("sliding_window_pattern", FULL_ATTENTION_STEP)
        stated = stated or ["full_attention" if (i + 1) % step == 0 else "sliding_attention" for i in range(layers)]
    elif not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return ()
    elif stated is None and known.name == "smollm3":
        stated = ["full_attention" if has_rope else "sliding_attention" for has_rope in _rotated_layers(config, layers)]
    elif stated is None:
        start = config.get("max_window_layers", layers)
        stated = ["sliding_attention" if i >= start else "full_attention" for i in range(layers)]
    found = tuple(kind == "sliding_attention" for kind in stated)
    return found if any(found) else ()


def _rotated_layers(config: dict[str, Any], layers: int) -> list[int]:
    step = config.get("no_rope_layer_interval", NO_ROPE_STEP)
    return list(config.get("no_rope_layers") or [int((i + 1) % step != 0) for i in range(layers)])[:layers]


def _check_followed(config: dict[str, Any], *, shape: ModelShape, path: Path) -> None:
    """Refuse settings that transformers obeys and llama.cpp's graph of the family does not."""
    known = shape.architecture

    def expect(holds: bool, what: str, found: object) -> None:
        if not holds:
            raise InputError(
                f"{path}: expected {what} in a {known.name} model, which is what llama.cpp computes, found {found}; "
                "export this model to ONNX instead"
            )

    activation = config.get("hidden_activation") or config.get("hidden_act") or known.activation
    expect(activation == known.activation, f"hidden_act {known.activation!r}", repr(activation))
    if not known.optional_biases:
        biases = [name for name in ("attention_bias", "mlp_bias") if config.get(name)]
        expect(not biases, "no biases but those of the family", " and ".join(biases))
    if not known.free_head_dim:
        expect(shape.head_dim * shape.heads == shape.hidden, "head_dim hidden_size / heads", shape.head_dim)
    if known.name in ("llama", "smollm3", "qwen2", "qwen3"):
        expect(not shape.sliding, "attention to the whole text", f"sliding_window {shape.window}")
    if known.name == "smollm3":
        rotated = _rotated_layers(config, shape.layers)
        wanted = [int((i + 1) % NO_ROPE_STEP != 0) for i in range(shape.layers)]
        expect(rotated == wanted, f"no rotation in every {NO_ROPE_STEP}th layer alone", f"no_rope_layers {rotated}")
    if known.name == "gemma3":
        scalar = config.get("query_pre_attn_scalar", 256)
        wanted = shape.hidden // shape.heads if shape.layers == GEMMA_27B_LAYERS else shape.head_dim
        expect(scalar == wanted, f"query_pre_attn_scalar {wanted}", scalar)
        for name in ("attn_logit_softcapping", "use_bidirectional_attention"):
            expect(not config.get(name), f"no {name}", config.get(name))


def expected_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Hugging Face name and shape of every tensor of such a model."""
    known, h = shape.architecture, shape.hidden
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, h), "model.norm.weight": (h,)}
    if not shape.tied:
        shapes[HEAD] = (shape.vocab, h)
    norms = {"input_layernorm": h, "post_attention_layernorm": h}
    if known.branch_norms:
        norms |= {"pre_feedforward_layernorm": h, "post_feedforward_layernorm": h}
    if known.head_norms:
        norms |= {"self_attn.q_norm": shape.head_dim, "self_attn.k_norm": shape.head_dim}
    matrices = _matrices(shape)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for norm, width in norms.items():
            shapes[f"{prefix}.{norm}.weight"] = (width,)
        for matrix, size in matrices.items():
            shapes[f"{prefix}.{matrix}.weight"] = size
            if _has_bias(matrix, shape=shape):
                shapes[f"{prefix}.{matrix}.bias"] = size[:1]
    return shapes


def _matrices(shape: ModelShape) -> dict[str, tuple[int, int]]:
    q, kv, h, f = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden, shape.ffn
    ends = {"self_attn.o_proj": (h, q), "mlp.down_proj": (h, f)}
    if shape.architecture.fused:
        return {"self_attn.qkv_proj": (q + 2 * kv, h), "mlp.gate_up_proj": (2 * f, h), **ends}
    attention = {"self_attn.q_proj": (q, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h)}
    return {**attention, "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h), **ends}


def _has_bias(matrix: str, *, shape: ModelShape) -> bool:
    if shape.architecture.qkv_bias:
        return matrix in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return shape.attention_bias if matrix.startswith("self_attn") else shape.mlp_bias
