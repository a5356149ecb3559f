"""edgedistill: from a teacher model and a prompt file to measured, gated GGUF and ONNX artifacts."""

__version__ = "0.1.0"
