"""Which images of a collection to train on: copies, near copies, held-out relatives and faults are found.

measure.py reads every image once (in parallel, resumable) and keeps a small picture, an exact hash and a few
numbers of it; decide.py then takes every decision from these, each traceable to a rule, its numbers and its
threshold (`curation.json`).
"""
