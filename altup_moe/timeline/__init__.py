"""What one rank does when."""
