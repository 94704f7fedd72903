"""One whole run: its recipe, the Hugging Face Trainer that carries it out, and its folder on disk."""
