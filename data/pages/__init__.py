"""Pages to open from disk: the catalogue (catalog.py) and a browser of shards (gallery.py).

Plain HTML, CSS and JavaScript in assets/, joined into one file by bundle.py; no build step, no server and no
network.
"""
