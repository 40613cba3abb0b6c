"""The page of a run, or of several beside each other: reads run directories, writes one HTML file. Loads no torch."""
