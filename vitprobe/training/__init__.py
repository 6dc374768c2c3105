"""Train variants with registers: objectives, a straight loop, checkpoints, held-out measures."""
