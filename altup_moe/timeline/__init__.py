"""What one rank does when: spans of a step, how much of the exchange they hide, and two ways to look at them."""
