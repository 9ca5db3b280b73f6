"""Runtimes behind one protocol: something that takes a batch of pixels and gives logits, and says where it ran."""
