"""The commands: configuration, signals, terminal."""
