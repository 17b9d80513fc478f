"""Plans fitted to one network: their options, references, errors, and the fit itself."""
