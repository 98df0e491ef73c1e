"""From what a source lists to data rows in stable slices, and back from a data row to its content.

`datasets.load_dataset` is the way in; `content.py` reads one row under the rules about folders and addresses.
"""
