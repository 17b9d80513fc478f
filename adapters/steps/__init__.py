"""The steps of a run: whose they are, where they are, and what they give back."""
