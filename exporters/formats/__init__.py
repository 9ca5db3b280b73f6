"""How a variant's graph expresses its precision."""
