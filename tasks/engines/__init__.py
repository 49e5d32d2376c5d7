"""Language-model back ends behind one protocol."""
