"""A scheduler's config: what it says of the model, of sampling, and what was not said."""
