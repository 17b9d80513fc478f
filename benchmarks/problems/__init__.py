"""Problems whose solutions are known."""
