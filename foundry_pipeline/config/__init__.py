"""What a person writes, read strictly: one module per kind of file or block, all problems at once.

`manifest.py` and `home.py`, a level up, are the way in.
"""
