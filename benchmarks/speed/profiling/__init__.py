"""Where the time of one step goes."""
