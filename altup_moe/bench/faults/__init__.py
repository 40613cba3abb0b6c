"""What `altup-moe bench faults` is made of: a schedule, injections, a supervisor, and the account of what was lost."""
