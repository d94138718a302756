"""``mim4dd report``: one page about one or several runs, from the files that they left behind.

Reading (``runs``, ``curves``), what is worth saying (``content``, ``panels``) and how it looks (``page``, ``drawing``,
``templates/``) are apart. Nothing is computed here that a run has not measured.
"""
