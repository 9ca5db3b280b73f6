"""ONNX graphs: questions, and rules that rewrite them."""
