"""What every room stands on: errors, shapes, seeded randomness, files, the machine, the terminal, YAML."""
