"""What things are: configuration, array layouts and table columns. Imports nothing heavy."""
