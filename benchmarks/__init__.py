"""The command line, test problems, the embedded model, and the measurements made with them."""
