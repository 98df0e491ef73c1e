"""How good a run is, where the dataset has ground truth: `evaluate.py` is the way in, one module a kind of prediction.

Evaluation reads the tables, never an export. AP and AR see every score: a threshold beforehand changes them. Verdicts
on objects, and all measures of entities, are of what the run's `min_score` lets pass.
"""
