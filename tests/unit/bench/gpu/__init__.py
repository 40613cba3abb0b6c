"""`altup-moe bench gpu`."""
