"""What `altup-moe` can do: one module a command."""
