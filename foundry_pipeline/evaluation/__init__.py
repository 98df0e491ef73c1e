"""How good a run is, where the dataset has ground truth: `evaluate.py` is the way in, one module a kind of prediction.

Evaluation reads the tables without any threshold, never an export: a threshold beforehand changes the result.
"""
