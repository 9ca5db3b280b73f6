"""The machine under kit: files written whole, JSON, installed packages, what CPU and GPU there are."""
