"""The study in docs/study.md: when do statistics over all ranks help? See `__main__`."""
