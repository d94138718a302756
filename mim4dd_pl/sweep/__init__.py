"""``mim4dd sweep``: named variants of a recipe x seeds, each cell one ``fit``, compared pairwise.

Not done here: anything that a single run does. A cell is a process of its own, whose settings are its command line.
"""
