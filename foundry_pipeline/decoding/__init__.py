"""What a reply says, part by part: each part ends in a table's columns or in a reject.

`decode.py`, a level up, is the way in.
"""
