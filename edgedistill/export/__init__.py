"""Student to GGUF and ONNX artifacts, with the proof that they equal it."""
