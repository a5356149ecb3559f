"""What onnxruntime-genai's model builder needs told to build the families that are exported as transformers runs them.

For the process that runs the builder. Its classes expect configurations from before transformers 5, and get parts of
some families wrong; every change here is held against transformers' logits by a test.
"""

from __future__ import annotations

from typing import Any

from onnxruntime_genai.models.builder import Gemma3Model, LlamaModel, Model, SmolLM3Model
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ROTATED_STEP = 16


def adapt_builder() -> None:
    """Change the builder's classes; once per process."""
    _wrap(Model, "make_config_init", _flatten_rope)
    _wrap(Model, "make_context_length_init", _keep_whole_caches)
    Model.make_rope_init = _with_yarn(Model.make_rope_init)
    LlamaModel.make_rope_init = _beside_llama3(LlamaModel.make_rope_init)
    Model.make_inv_freq_rescaled = _with_given_frequencies(Model.make_inv_freq_rescaled)
    SmolLM3Model.make_attention = _without_rotation_where_there_is_none(SmolLM3Model.make_attention)
    Gemma3Model.make_rotary_embedding_multi_cache = _gemma3_caches
    Gemma3Model.__init__ = _with_exact_scale(Gemma3Model.__init__)


def _wrap(kind: type, name: str, before: Any) -> None:
    """Run `before` with the same arguments ahead of a method."""
    method = getattr(kind, name)

    def wrapped(self: Any, config: Any) -> Any:
        before(self, config)
        return method(self, config)

    setattr(kind, name, wrapped)


def _flatten_rope(self: Any, config: Any) -> None:
    """One rotation's parameters at the top, as they were before there could be one per kind of layer."""
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return
    if config.model_type == "gemma3_text":
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope = dict(rope["full_attention"])
    if rope.get("rope_type") == "longrope":
        rope["type"] = "longrope"
    if config.model_type == "phi3" and config.sliding_window:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    share = rope.get("partial_rotary_factor", 1.0)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if share != 1.0 and int(head_dim * share) % ROTATED_STEP:
        raise ValueError(
            f"expected rotated dimensions of a head by {ROTATED_STEP}, which onnxruntime's attention asks for, "
            f"found {int(head_dim * share)}"
        )


def _keep_whole_caches(self: Any, config: Any) -> None:
    """Layers that see a window keep the whole cache: a cache of the window's size refuses longer prompts."""
    self.extra_options["windowed_kv_cache"] = False


def _with_yarn(original: Any) -> Any:
    def make_rope_init(self: Any, config: Any) -> None:
        if config.rope_parameters["rope_type"] != "yarn":
            original(self, config)
            return
        frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
        self.rope_attrs["mscale"] = factor
        self.rope_attrs["rescale_inv_freq"] = {"given": frequencies}

    return make_rope_init


def _beside_llama3(original: Any) -> Any:
    """The builder's Llamas know their own scaling and pass over every other."""

    def make_rope_init(self: Any, config: Any) -> None:
        (original if config.rope_parameters["rope_type"] == "llama3" else Model.make_rope_init)(self, config)

    return make_rope_init


def _with_given_frequencies(original: Any) -> Any:
    def make_inv_freq_rescaled(self: Any, frequencies: Any) -> Any:
        given = self.rope_attrs["rescale_inv_freq"].get("given")
        return original(self, frequencies) if given is None else given.to(frequencies.dtype)

    return make_inv_freq_rescaled


def _without_rotation_where_there_is_none(original: Any) -> Any:
    """The builder turns rotation off inside the fused attention alone and then asks for one outside it."""

    def make_attention(self: Any, layer_id: int, attention: Any, root_input: str, **options: Any) -> None:
        self.attention_attrs["rope"] = bool(self.no_rope_layers[layer_id])
        try:
            original(self, layer_id, attention, root_input, **options)
        finally:
            self.attention_attrs["rope"] = True

    return make_attention


def _gemma3_caches(self: Any) -> None:
    """Tables of both rotations; that of layers that see a window is not scaled."""
    self.cos_cache_global_name, self.sin_cache_global_name = "cos_cache_global", "sin_cache_global"
    self.cos_cache_local_name, self.sin_cache_local_name = "cos_cache_local", "sin_cache_local"
    Model.make_rotary_embedding_caches(
        self, cos_cache_name=self.cos_cache_global_name, sin_cache_name=self.sin_cache_global_name
    )
    self.rope_attrs |= {"create_caches": True, "theta": self.rope_local_theta, "rescale_factors": 1}
    Model.make_rotary_embedding_caches(
        self, cos_cache_name=self.cos_cache_local_name, sin_cache_name=self.sin_cache_local_name
    )


def _with_exact_scale(original: Any) -> Any:
    """The builder rounds the embedding's scale to two decimals."""

    def __init__(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.embed_attrs["scale"] = self.hidden_size**0.5

    return __init__
