"""The training loop, losses, optimizers and checkpoints."""
