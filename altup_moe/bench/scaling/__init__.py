"""What `altup-moe bench scaling` is made of: points that ranks measure, their table, and a picture."""
