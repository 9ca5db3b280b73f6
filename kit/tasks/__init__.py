"""Tasks: what people put in and get out, as tensors and back."""
