"""What is done: one module or folder a stage, in pipeline order."""
