"""What a person sees: tables and progress, made from results and records, never from models."""
