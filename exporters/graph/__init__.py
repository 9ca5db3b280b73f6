"""ONNX graphs: files, names, questions, and rules that rewrite them."""
