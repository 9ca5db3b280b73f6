"""The bench: what a bundle takes on this machine, measured so that the figures can be trusted."""
