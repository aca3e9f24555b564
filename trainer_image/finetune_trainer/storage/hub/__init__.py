"""The Hugging Face Hub or a mirror of it: its files, requests and errors."""
