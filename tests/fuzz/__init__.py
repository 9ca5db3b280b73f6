"""Files that are wrong on purpose, thousands of them, and what kit says to each: `python -m tests.fuzz --count 20000`."""
