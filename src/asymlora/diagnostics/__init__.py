"""What trained factors look like, and what that says."""
