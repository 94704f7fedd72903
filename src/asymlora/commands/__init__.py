"""One file a command that is more than a call: its options, and what it prints."""
