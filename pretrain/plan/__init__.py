"""What a run would cost on machines that are not here: counted where it can be counted, else a stated model.

docs/scale.md says what is counted, what is modelled, and what was checked.
"""
