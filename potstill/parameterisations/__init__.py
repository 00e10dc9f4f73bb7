"""How distilled examples are stored: one file a parameterisation."""
