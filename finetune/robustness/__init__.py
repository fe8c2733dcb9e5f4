"""How much a score falls on images as they really go wrong: `medloom evaluate RUN --robustness`.

Corruptions (corruptions.py and the files of their physics) act on native images; study.py scores every arm on
each of them, losses.py turns the long table into losses with intervals. Real shift, between sites
and scanners, is measured by subgroups.py for every evaluation.
"""
