"""What a run folder tells while the run goes on, from another process or another machine.

Nothing here talks to the run: a watcher reads metrics.jsonl, the checkpoints and heartbeat.json over whatever
file system both see, and cannot disturb it.
"""
