"""What a run's ranks say to each other, noted; and a watcher that names the rank and operation that a hang is due to.

- `ring`: the notes in memory that another process can read. `notes`: who writes them, and their sums.
"""
