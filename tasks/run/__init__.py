"""One run: its session, the keys of its artefacts, and the shells of its stages."""
