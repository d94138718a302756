"""The program: command line, trainer, recipes, resuming, processes, estimates."""
