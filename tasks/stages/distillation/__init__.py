"""Stage 4: losses and their gradients."""
