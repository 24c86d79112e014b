"""The slot of each rank, how ranks find each other, and the process specs for their agents."""
