"""Runtimes behind one protocol: something that takes named tensors and gives named tensors, and says where it ran."""
