"""Where each rank runs, how the ranks find each other, and what the agent of each is told."""
