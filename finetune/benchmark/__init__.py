"""`medloom benchmark`: encoders x tasks x protocols x seeds x label shares, one resumable grid with a page.

config.py says what is asked, grid.py which cells that makes, cell.py does one, pool.py, cluster.py and
slurm.py do many, results.py reads what they left, standing.py ranks, page.py shows.
"""
