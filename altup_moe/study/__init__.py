"""Studies: many training runs, what each one learned, and how fast it is."""
